"""A connector that was stopped to be moved past refused records is resumed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from include.streams.kafka.reading import ReadingStalled
from include.streams.landing import stepping
from include.streams.landing.tables import connector_name
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import open_alarm
from include.streams.operations.database import begin

pytestmark = pytest.mark.integration


def in_vain(*_):
    raise ReadingStalled("no refused record within 60 s")


def test_a_connector_stopped_by_an_earlier_try_is_resumed_without_search(operations, landed_topic, monkeypatch):
    topic = landed_topic(partitions=1)
    resumed: list[str] = []
    connect = SimpleNamespace(resume=resumed.append)
    monkeypatch.setattr(stepping, "_find", in_vain)
    with pytest.raises(ReadingStalled):
        stepping.step_over(topic, connect)
    assert resumed == []
    name = connector_name(topic)
    with begin() as connection:
        open_alarm(connection, name, AlarmKind.stepping_over, "killed after it was stopped")
    assert stepping.step_over(topic, connect) == []
    assert resumed == [name]
    assert not stepping.is_stepping(name)
