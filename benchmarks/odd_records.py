"""Odd records: records that a broker accepts and few programs expect.

A record of each kind keeps the topic's contract or breaks it. So its outcome is known: one effect, or a dead letter.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.wire import RawRecord


@dataclass(frozen=True)
class OddKind:
    """A kind of odd record.

    Attributes:
        name: The name of the kind.
        is_good: Whether a record of this kind has an effect; otherwise it becomes a dead letter.
        make: Creates the record with a number.
    """

    name: str
    is_good: bool
    make: Callable[[str], RawRecord]


def value(number: str) -> bytes:
    """A message's value by the contract `Probe`."""
    return json.dumps({"version": 1, "number": number}).encode()


def _now() -> int:
    return time.time_ns() // 1_000_000


def _headers(*headers: tuple[bytes, bytes | None]) -> Callable[[str], RawRecord]:
    return lambda number: RawRecord(number.encode(), value(number), headers, _now())


def _time(number_of: Callable[[], int]) -> Callable[[str], RawRecord]:
    return lambda number: RawRecord(number.encode(), value(number), (), number_of())


def _key(key: bytes | None) -> Callable[[str], RawRecord]:
    return lambda number: RawRecord(key, value(number), (), _now())


def _value(of: Callable[[str], bytes | None], *, gzipped: bool = False) -> Callable[[str], RawRecord]:
    return lambda number: RawRecord(number.encode(), of(number), (), _now(), gzipped)


KINDS = (
    OddKind("header name that is no UTF-8", True, _headers((b"\xff\xfe\x80", b"1"))),
    OddKind("header without a value", True, _headers((b"trace", None))),
    OddKind("header twice", True, _headers((b"trace", b"1"), (b"trace", b"2"))),
    OddKind("header without a name", True, _headers((b"", b"1"))),
    OddKind("header of zero bytes", True, _headers((b"zero", b"\0\0\0"))),
    OddKind("header of 100 kB", True, _headers((b"large", b"h" * 100_000))),
    OddKind("time in microseconds", True, _time(lambda: _now() * 1_000)),
    OddKind("time in nanoseconds", True, _time(lambda: _now() * 1_000_000)),
    OddKind("time before the year 1", True, _time(lambda: -62_135_596_800_001)),
    OddKind("time below zero", True, _time(lambda: -2)),
    OddKind("no time", True, _time(lambda: -1)),
    OddKind("no key", True, _key(None)),
    OddKind("empty key", True, _key(b"")),
    OddKind("key that is no UTF-8", True, _key(b"\xff\x00\xfe")),
    OddKind("no value", False, _value(lambda number: None)),
    OddKind("empty value", False, _value(lambda number: b"")),
    OddKind("framing of a schema registry", False, _value(lambda number: b"\0\0\0\0\x07" + value(number))),
    OddKind("value that is no UTF-8", False, _value(lambda number: value(number)[:-1] + b',"\xff":1}')),
    OddKind("UTF-16", False, _value(lambda number: value(number).decode().encode("utf-16"))),
    OddKind("byte order mark", False, _value(lambda number: b"\xef\xbb\xbf" + value(number))),
    OddKind("50,000 nested lists", False, _value(lambda number: b"[" * 50_000 + b"]" * 50_000)),
    OddKind("900 kB", False, _value(lambda number: value(number) + b" " * 900_000)),
    OddKind("3 MB that are 3 kB on the wire", False, _value(lambda number: b"x" * 3_000_000, gzipped=True)),
    OddKind("a name twice", False, _value(lambda number: value(number)[:-1] + b',"version":1}')),
    OddKind("integer of 5,000 digits", False, _value(lambda number: b'{"version":' + b"1" * 5_000 + b"}")),
    OddKind("half a surrogate pair", False, _value(lambda number: b'{"version":1,"number":"\\ud800"}')),
    # The value keeps the contract, but PostgreSQL cannot store it.
    OddKind("zero character", False, _value(lambda number: b'{"version":1,"number":"\\u0000%s"}' % number.encode())),
)  # fmt: skip
