"""`make send`: the messages in a file, their keys, and the errors about invalid messages."""

from __future__ import annotations

import json

import pytest

from include.streams.contracts import Registry
from include.streams.kafka.sending import CannotSend, Sent, Value, headers_in, lines_of, messages_of, values_in
from tests import webhooks
from tests.unit.contracts.orders import ORDERS, message

TOPICS = Registry(ORDERS)


def data(content: str | bytes) -> list[bytes]:
    return [value.data for value in values_in(content if isinstance(content, bytes) else content.encode())]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"a": 1}\n\n  {"a":2}  \n', [b'{"a": 1}', b'{"a":2}']),
        ('[{"a": [1, 2]}, {"a": 1.50}]', [b'{"a": [1, 2]}', b'{"a": 1.50}']),
        ('{\n  "a": 1\n}\n', [b'{\n  "a": 1\n}']),
        ('{\n "a": 1\n}\n{\n "a": 2\n}', [b'{\n "a": 1\n}', b'{\n "a": 2\n}']),
        ('\ufeff{"a": "\u00e9"}', ['{"a": "\u00e9"}'.encode()]),
        ("[]", []),
        (" \n", []),
        # Bytes are not changed: the contract checks repeated names and huge numbers.
        ('{"a": 1, "a": 2}', [b'{"a": 1, "a": 2}']),
        (f"[{'9' * 5000}]", [b"9" * 5000]),
    ],
)
def test_documents_in_lines_in_an_array_or_alone_are_values(content, expected):
    assert data(content) == expected


@pytest.mark.parametrize("content", [b'{"a": 1}\nnot json\n', b"\xff\xfe\n{}", b"[" * 100_000])
def test_text_that_is_not_json_is_split_into_lines(content):
    assert data(content) == content.strip().split(b"\n")


def test_each_value_has_its_line_in_the_file():
    content = b'{"a": 1}\n\n{\n"a": 2\n}\n{"a": 3}'
    assert [value.line for value in values_in(content)] == [1, 3, 6]
    assert [value.line for value in values_in(b'[\n{"a": 1},\n{"a": 2}]')] == [2, 3]
    assert [value.line for value in values_in(b"{}\n\nno")] == [1, 3]


def test_the_key_is_the_topics_key_field():
    (outgoing,) = messages_of(TOPICS, "orders", values_in(message(order_id="o-7")))
    assert outgoing.key == b"o-7"


@pytest.mark.parametrize(
    ("field", "key"), [("kind", b"retail"), ("quantity", b"2"), ("price", b"9.5"), ("a.b", None), ("kind.b", None)]
)
def test_the_key_is_the_field_that_the_caller_names(field, key):
    values = values_in(message())
    if key is None:
        with pytest.raises(CannotSend, match=rf"message 1 \(line 1\): its key {field} has no text and no number"):
            messages_of(TOPICS, "orders", values, key_field=field)
    else:
        assert messages_of(TOPICS, "orders", values, key_field=field)[0].key == key


def test_the_key_may_be_a_field_of_an_object():
    values = values_in(b'{"a": {"b": "c"}}')
    assert messages_of(TOPICS, "other", values, key_field="a.b", is_checked=False)[0].key == b"c"
    # A member without a name is no key.
    assert messages_of(TOPICS, "other", values_in(b'{"": "x"}'), is_checked=False)[0].key is None


def test_invalid_messages_are_named_with_their_lines_and_nothing_is_sent():
    lines = [message(), message("price"), b"not json", message(quantity="2")]
    with pytest.raises(CannotSend) as refused:
        messages_of(TOPICS, "orders", values_in(b"\n".join(lines)))
    text = str(refused.value)
    assert "nothing was sent to orders, 3 of 4 messages are invalid" in text
    assert "message 2 (line 2): missing_field: price (missing)" in text
    assert "message 3 (line 3): not_json" in text
    assert "message 4 (line 4): wrong_type: quantity" in text
    assert "CHECK=0" in text


def test_of_many_invalid_messages_some_are_named_and_others_counted():
    with pytest.raises(CannotSend, match=r"14 of 14 messages are invalid.*message 10 .*; and 4 more"):
        messages_of(TOPICS, "orders", values_in(b"{}\n" * 14))


def test_without_the_check_an_invalid_message_keeps_its_bytes_and_key():
    values = values_in(b"\n".join([message("price"), b"not json", message()]))
    messages = messages_of(TOPICS, "orders", values, is_checked=False)
    assert [outgoing.key for outgoing in messages] == [b"o-1", None, b"o-1"]
    assert [outgoing.value.data for outgoing in messages] == [value.data for value in values]


def test_a_topic_that_is_not_declared_is_refused_unless_unchecked():
    with pytest.raises(CannotSend, match=r"declares the topic 'order'; it has: orders"):
        messages_of(TOPICS, "order", values_in(message()))
    (outgoing,) = messages_of(TOPICS, "order", values_in(json.dumps({"a": 1}).encode()), is_checked=False)
    assert outgoing.key is None


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["trace: 1"], [("trace", b"1")]),
        (["trace: 1, source: a, b"], [("trace", b"1"), ("source", b"a, b")]),
        (["trace:", "at: 10:30"], [("trace", b""), ("at", b"10:30")]),
        ([], []),
    ],
)
def test_headers_are_read_as_names_and_values(texts, expected):
    assert headers_in(texts) == expected


@pytest.mark.parametrize("text", ["trace", ": 1", ""])
def test_a_header_without_a_name_is_refused(text):
    with pytest.raises(CannotSend, match='write "name: value"'):
        headers_in([text])


def test_few_messages_have_a_line_each_many_have_a_line_for_each_partition():
    assert lines_of("orders", [Sent(1, 7), Sent(0, 3)]) == [
        "orders  partition 1  offset 7",
        "orders  partition 0  offset 3",
    ]
    many = [Sent(n % 2, n) for n in range(30)]
    assert lines_of("orders", many) == [
        "orders  partition 0  offsets 0 to 28: 15 messages",
        "orders  partition 1  offsets 1 to 29: 15 messages",
    ]


def test_a_foreign_topic_is_checked_with_headers_and_has_no_key():
    topics = Registry(webhooks.topic(name="hooks"))
    (webhook,) = webhooks.webhooks(1, kinds=("push",))
    values = values_in(webhook.value)
    (outgoing,) = messages_of(topics, "hooks", values, headers=webhook.headers)
    assert outgoing.key is None
    with pytest.raises(CannotSend, match="message 1 "):
        messages_of(topics, "hooks", values)
    type_header = webhooks.WEBHOOKS.by.name
    unwanted = [(name, b"star" if name == type_header else header) for name, header in webhook.headers]
    with pytest.raises(CannotSend, match="the topic has no contract for its type"):
        messages_of(topics, "hooks", values, headers=unwanted)


def test_a_document_with_headers_and_value_is_a_whole_message():
    text = (
        '{"headers": {"a": "1", "b": null}, "value": {"n": 1.0,  "x": "é"}, "key": "k"}\n'
        '{"value": "not JSON", "headers": {}}\n{"value": null, "headers": {"n": 3}}\n'
        '{"key": "k", "value": 1}\n{"headers": {}, "value": 1, "other": 2}'
    )
    assert values_in(text.encode()) == [
        Value('{"n": 1.0,  "x": "é"}'.encode(), 1, b"k", (("a", b"1"), ("b", None))),
        Value(b"not JSON", 2),
        Value(None, 3, None, (("n", b"3"),)),
        Value(b'{"key": "k", "value": 1}', 4),
        Value(b'{"headers": {}, "value": 1, "other": 2}', 5),
    ]
    # Beside a line that is no JSON, too.
    assert values_in(b'{"headers": {"a": "1"}, "value": 2}\n{')[0] == Value(b"2", 1, None, (("a", b"1"),))


def test_a_whole_sample_of_webhooks_keeps_its_contract_with_its_own_headers(tmp_path):
    webhooks.write_sample(tmp_path / "sample.jsonl", 12)
    topics = Registry(webhooks.topic(name="hooks"))
    values = [
        v for v in values_in((tmp_path / "sample.jsonl").read_bytes()) if ("X-Hub-Event", b"star") not in v.headers
    ]
    messages = messages_of(topics, "hooks", values, headers=[("trace", b"1")])
    assert len(messages) == 9
    assert all(message.key and message.headers[-1] == ("trace", b"1") for message in messages)
    assert dict(messages[0].headers)["X-Hub-Event"] == b"push"
