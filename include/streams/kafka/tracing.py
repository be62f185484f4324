"""W3C trace context (`traceparent`, `tracestate`) of messages: span links of tasks, and headers that travel on.

A message's header becomes a link of the task's span, if Airflow sends traces (`[traces] otel_on`). What its effect
writes to the outbox carries the same headers, so the receiver's spans belong to the sender's trace. Dead letters and
their replays keep all headers of their message anyway. A header that is not valid is ignored: it comes from anybody who
may write to the topic.
"""

import logging
import re
from collections.abc import Iterable

from include.streams.kafka.messages import Message
from include.streams.operations.outbox import TRACEPARENT, TRACESTATE

log = logging.getLogger(__name__)

# Version 00, which every version can be read as; ids of zeros are not valid.
_TRACEPARENT = re.compile(rb"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
# Printable ASCII, as long as the standard asks everybody to pass on.
_TRACESTATE = re.compile(rb"[\x20-\x7e]{1,512}")
# The SDK keeps this many links of a span by default.
MAX_LINKS = 128


def trace_headers(message: Message) -> dict[str, bytes]:
    """The valid trace headers of a message.

    Args:
        message: The message.

    Returns:
        {name: value}; empty without a valid `traceparent`. A `traceparent` that occurs twice is not valid.
    """
    found = [value for name, value in message.headers if name == TRACEPARENT]
    if len(found) != 1 or not _TRACEPARENT.fullmatch(found[0] or b""):
        return {}
    headers = {TRACEPARENT: found[0] or b""}
    states = [value or b"" for name, value in message.headers if name == TRACESTATE]
    if len(states) == 1 and _TRACESTATE.fullmatch(states[0]):
        headers[TRACESTATE] = states[0]
    return headers


class SpanLinks:
    """Links the spans that have sent messages to the span of the task that handles them.

    The links of one object are to at most MAX_LINKS different spans.
    """

    def __init__(self) -> None:
        self._linked: set[bytes] = set()

    def add(self, messages: Iterable[Message]) -> None:
        """Link the messages' spans. Does nothing without a recording span; never raises.

        Args:
            messages: The messages that the task handles.
        """
        try:
            self._add(messages)
        except Exception as error:
            log.warning("spans are not linked: %s: %s", type(error).__name__, error)

    def _add(self, messages: Iterable[Message]) -> None:
        from opentelemetry import trace

        span = trace.get_current_span()
        if not span.is_recording():
            return
        for message in messages:
            if len(self._linked) >= MAX_LINKS:
                return
            header = trace_headers(message).get(TRACEPARENT)
            match = _TRACEPARENT.fullmatch(header) if header else None
            if match is None or match[0] in self._linked:
                continue
            self._linked.add(match[0])
            trace_id, span_id, flags = (int(part, 16) for part in match.groups())
            context = trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=trace.TraceFlags(flags))
            attributes = {"messaging.system": "kafka", "messaging.destination.name": message.topic}
            span.add_link(context, attributes)
