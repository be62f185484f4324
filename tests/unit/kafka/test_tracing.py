"""Trace headers of messages: which are valid, and what a task's span links to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from include.streams.kafka import tracing
from include.streams.kafka.messages import Message

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE}-{SPAN}-01".encode()


def message(*headers: tuple[str, bytes | None]) -> Message:
    return Message("shop.orders", "id", 0, 0, None, None, b"{}", headers)


def test_a_valid_header_is_passed_on_with_its_state():
    headers = (("traceparent", VALID), ("other", b"x"), ("tracestate", b"vendor=1"))
    assert tracing.trace_headers(message(*headers)) == {"traceparent": VALID, "tracestate": b"vendor=1"}


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"00-abc",
        VALID.upper(),
        VALID + b"-more",
        VALID + b"\n",
        b"ff" + VALID[2:],
        VALID.replace(TRACE.encode(), b"0" * 32),
        VALID.replace(SPAN.encode(), b"0" * 16),
        b"\xff" * 55,
    ],
)
def test_an_invalid_header_is_ignored(value: bytes | None):
    assert tracing.trace_headers(message(("traceparent", value), ("tracestate", b"vendor=1"))) == {}


def test_a_header_that_occurs_twice_is_ignored():
    assert tracing.trace_headers(message(("traceparent", VALID), ("traceparent", VALID))) == {}


@pytest.mark.parametrize("state", [None, b"", b"a=\r\nX-Injected: 1", b"x" * 513, b"\xff"])
def test_an_invalid_state_is_left_out(state: bytes | None):
    assert tracing.trace_headers(message(("traceparent", VALID), ("tracestate", state))) == {"traceparent": VALID}


@given(st.one_of(st.binary(max_size=60), st.from_regex(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", fullmatch=True)))
def test_what_is_accepted_is_what_open_telemetry_accepts(value: bytes):
    accepted = bool(tracing.trace_headers(message(("traceparent", value))))
    try:
        text = value.decode("ascii")
    except UnicodeDecodeError:
        assert not accepted
        return
    context = TraceContextTextMapPropagator().extract({"traceparent": text})
    valid = trace.get_current_span(context).get_span_context().is_valid
    if accepted:
        assert valid
    elif value.startswith(b"00-") and len(value) == 55:
        assert not valid


def links_of(*batches: list[Message]) -> list[tuple[int, int]]:
    links = tracing.SpanLinks()
    tracer = TracerProvider().get_tracer(__name__)
    with tracer.start_as_current_span("task") as span:
        for batch in batches:
            links.add(batch)
    return [(link.context.trace_id, link.context.span_id) for link in span.links]  # type: ignore[attr-defined]


def test_a_span_is_linked_to_each_sender_once():
    other = VALID.replace(SPAN.encode(), b"1" * 16)
    one, two = message(("traceparent", VALID)), message(("traceparent", other))
    assert links_of([one, message(), two], [one]) == [
        (int(TRACE, 16), int(SPAN, 16)),
        (int(TRACE, 16), int("1" * 16, 16)),
    ]


def test_a_span_has_at_most_as_many_links_as_the_sdk_keeps():
    many = [message(("traceparent", f"00-{TRACE}-{number:016x}-01".encode())) for number in range(1, 400)]
    links = links_of(many[:200], many[200:])
    assert len(links) == tracing.MAX_LINKS
    assert links[0][1] == 1


def test_without_a_recording_span_no_header_is_looked_at(monkeypatch):
    monkeypatch.setattr(tracing, "trace_headers", lambda _: pytest.fail("looked at"))
    tracing.SpanLinks().add([message(("traceparent", VALID))])


def test_a_failure_raises_nothing(monkeypatch, caplog):
    def broken(_):
        raise RuntimeError("broken")

    monkeypatch.setattr(tracing, "trace_headers", broken)
    assert links_of([message(("traceparent", VALID))]) == []
    assert "spans are not linked: RuntimeError: broken" in caplog.text
