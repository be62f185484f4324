"""A service that hangs or fails delays no request, and is named."""

from __future__ import annotations

import logging
import threading
import time

from include.streams.streams_page.background import MAX_KEPT, Background, Backgrounds


def test_a_value_is_read_again_only_when_it_is_old():
    answers = iter([1, 2])
    kept = Background("a service", lambda: next(answers), fresh_seconds=60)
    assert [kept.get().value for _ in range(3)] == [1, 1, 1]
    read_each_time = Background("a service", lambda: next(answers), fresh_seconds=0)
    assert read_each_time.get().value == 2


def test_a_service_that_hangs_is_named_after_the_patience():
    go_on = threading.Event()
    hangs = Background("a service", lambda: go_on.wait(30), fresh_seconds=0)
    began = time.monotonic()
    assert hangs.get(patience=0.2) == (None, "does not answer")
    assert time.monotonic() - began < 5
    threads = threading.active_count()
    hangs.get(patience=0)
    assert threading.active_count() == threads
    go_on.set()
    assert hangs.get(patience=30).value is True


def test_services_that_hang_are_awaited_together():
    go_on = threading.Event()
    backgrounds = Backgrounds()
    wanted = [backgrounds.of(("x", str(n)), "a service", lambda: go_on.wait(30), 0) for n in range(10)]
    began = time.monotonic()
    assert {reading.problem for reading in backgrounds.gather(wanted, patience=0.3)} == {"does not answer"}
    assert time.monotonic() - began < 2
    go_on.set()


def test_a_failure_is_logged_once_and_shows_no_details(caplog):
    def read() -> None:
        raise RuntimeError("password of db.internal is wrong")

    fails = Background("a service", read, fresh_seconds=0)
    with caplog.at_level(logging.WARNING, logger="include.streams.streams_page.background"):
        readings = [fails.get() for _ in range(3)]
    assert {reading.value for reading in readings} == {None}
    assert "RuntimeError" in readings[0].problem
    assert "db.internal" not in readings[0].problem
    assert len(caplog.records) == 1


def test_values_that_nobody_asks_for_are_forgotten():
    backgrounds = Backgrounds()
    first = backgrounds.of(("x", "first"), "a service", lambda: 1, 60)
    assert backgrounds.of(("x", "first"), "a service", lambda: 2, 60) is first
    for n in range(MAX_KEPT):
        backgrounds.of(("x", str(n)), "a service", lambda: 1, 60)
    assert backgrounds.of(("x", "first"), "a service", lambda: 2, 60) is not first
