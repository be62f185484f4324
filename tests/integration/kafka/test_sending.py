"""`python -m include.streams send`, as a person uses it in a terminal, with the real broker."""

from __future__ import annotations

import io
import json
import secrets
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from include.streams import __main__ as command
from include.streams.contracts import Registry
from tests.integration.kafka.conftest import order, read_all

pytestmark = pytest.mark.integration


@pytest.fixture
def orders(make_topic):
    return make_topic(partitions=2)


@pytest.fixture
def ask(orders, monkeypatch, capsys) -> Callable[..., tuple[int, list[str], str]]:
    """Run the command; returns its exit code, the lines of its output, and its error text."""
    monkeypatch.setattr(command, "load_registry", lambda reference: Registry(orders))

    def ask(*arguments: str, stdin: bytes = b"") -> tuple[int, list[str], str]:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(stdin)))
        code = command.main(["send", *arguments])
        said = capsys.readouterr()
        return code, said.out.splitlines(), said.err

    return ask


def test_the_messages_of_a_file_are_at_the_printed_offsets_with_their_keys(orders, ask, tmp_path):
    path = tmp_path / "orders.jsonl"
    path.write_bytes(b"\n".join([order("a"), order("b"), order("c", 2)]))
    code, lines, _ = ask(orders.name, str(path), "--headers", "trace: 1, source: shop, north")
    records = {(n, r.offset()): r for n in (0, 1) for r in read_all(orders.name, n)}
    assert (code, len(records)) == (0, 3)
    for line, number in zip(lines, "abc", strict=True):
        name, _, partition, _, offset = line.split()
        record = records[int(partition), int(offset)]
        assert (name, record.key(), json.loads(record.value())["number"]) == (orders.name, number.encode(), number)
        assert record.headers() == [("trace", b"1"), ("source", b"shop, north")]


def test_messages_of_standard_input_are_sent_repeatedly_in_turn(orders, ask):
    content = json.dumps([json.loads(order("a")), json.loads(order("b"))], indent=2).encode()
    code, lines, _ = ask(orders.name, "-", "--count", "5", "--partition", "1", "--key", "amount", stdin=content)
    records = read_all(orders.name, 1)
    assert (code, lines) == (0, [f"{orders.name}  partition 1  offset {n}" for n in range(5)])
    assert [json.loads(record.value())["number"] for record in records] == ["a", "b", "a", "b", "a"]
    assert {record.key() for record in records} == {b"1"}


def test_of_a_file_with_an_invalid_message_nothing_is_sent_unless_unchecked(orders, ask):
    content = b"\n".join([order("a"), order("b", amount="two"), b"not json"])
    code, lines, said = ask(orders.name, "-", stdin=content)
    assert (code, lines) == (1, [])
    assert "message 2 (line 2): wrong_type: amount" in said
    assert "Traceback" not in said
    assert read_all(orders.name, 0) == read_all(orders.name, 1) == []
    code, lines, _ = ask(orders.name, "-", "--partition", "0", "--no-check", stdin=content)
    assert (code, len(lines)) == (0, 3)
    assert [record.value() for record in read_all(orders.name)] == content.split(b"\n")


def test_a_missing_topic_or_partition_is_named_at_once(orders, ask):
    code, _, said = ask("nobody.has.this", "-", "--no-check", stdin=b"{}")
    assert (code, said.count("\n")) == (1, 1)
    assert "topic nobody.has.this does not exist on the broker of connection kafka_default" in said
    code, _, said = ask(orders.name, "-", "--partition", "7", stdin=order("a"))
    assert (code, said) == (1, f"topic {orders.name} has no partition 7; it has 0 to 1\n")


def test_a_message_that_the_broker_refuses_is_named_and_others_counted(orders, ask):
    content = b"\n".join([order("a"), order("b", note=secrets.token_hex(1_000_000)), order("c")])
    code, _, said = ask(orders.name, "-", "--no-check", stdin=content)
    assert code == 1
    assert f"the broker accepted 2 of 3 messages for {orders.name}; message 2 (line 2): " in said


def test_a_broker_that_is_away_is_reported_in_one_sentence(orders, ask, monkeypatch):
    extra = json.dumps({"bootstrap.servers": "127.0.0.1:1"})
    connection = json.dumps({"conn_type": "kafka", "extra": extra})
    monkeypatch.setenv("AIRFLOW_CONN_BROKER_AWAY", connection)
    monkeypatch.setattr("include.streams.kafka.sending.METADATA_SECONDS", 1.0)
    code, lines, said = ask(orders.name, "-", "--conn-id", "broker_away", stdin=order("a"))
    assert (code, lines, said.count("\n")) == (1, [], 1)
