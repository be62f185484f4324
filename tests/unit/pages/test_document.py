"""A document that many browsers poll is read once for all of them, and an outage occupies no threads."""

from __future__ import annotations

import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from include.streams.pages.document import Document, Unavailable


def test_a_document_is_read_again_only_when_it_is_old():
    answers = iter([{"number": 1}, {"number": 2}])
    kept = Document(lambda: next(answers), fresh_seconds=60)
    assert [json.loads(kept.get().body) for _ in range(3)] == [{"number": 1}] * 3
    read_each_time = Document(lambda: next(answers), fresh_seconds=0)
    assert json.loads(read_each_time.get().body) == {"number": 2}


def test_the_etag_changes_only_with_the_content():
    answers = iter([{"number": 1}, {"number": 1}, {"number": 2}])
    document = Document(lambda: next(answers), fresh_seconds=0)
    first, same, other = (document.get().etag for _ in range(3))
    assert first == same != other
    assert first.startswith('"')


def test_other_requests_get_the_last_version_during_a_read():
    reading, go_on = threading.Event(), threading.Event()
    calls = []

    def read() -> dict:
        calls.append(1)
        if len(calls) == 2:
            reading.set()
            assert go_on.wait(30)
        return {"call": len(calls)}

    document = Document(read, fresh_seconds=0)
    assert json.loads(document.get().body) == {"call": 1}
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(document.get)
        assert reading.wait(30)
        assert json.loads(document.get().body) == {"call": 1}
        go_on.set()
        assert json.loads(slow.result(30).body) == {"call": 2}
    assert len(calls) == 2


def test_other_requests_fail_at_once_while_the_first_read_hangs():
    reading, go_on = threading.Event(), threading.Event()

    def read() -> dict:
        reading.set()
        assert go_on.wait(30)
        return {}

    document = Document(read, fresh_seconds=0)
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(document.get)
        assert reading.wait(30)
        with pytest.raises(Unavailable):
            document.get()
        go_on.set()
        slow.result(30)


def test_a_failure_is_logged_once_and_browsers_get_no_details(caplog):
    working = False

    def read() -> dict:
        if not working:
            raise RuntimeError("password of db.internal is wrong")
        return {}

    document = Document(read, fresh_seconds=0)
    with caplog.at_level(logging.INFO, logger="include.streams.pages.document"):
        for _ in range(3):
            with pytest.raises(Unavailable) as raised:
                document.get()
            assert "db.internal" not in str(raised.value)
        working = True
        document.get()
        document.get()
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
