"""When dead letters of a topic open the alarm about a producer that breaks its contract."""

import pytest

from include.streams.kafka.broken_contracts import is_broken, is_healthy, text_of
from include.streams.operations.alarm_kinds import AlarmKind


@pytest.mark.parametrize(
    ("total", "bad", "in_a_row", "broken"),
    [
        (200, 101, 0, True),
        (200, 100, 0, False),
        (19, 10, 0, True),
        (9, 9, 0, False),
        # No recent messages, but the last messages of all were dead letters.
        (0, 0, 3, True),
        (2, 2, 2, False),
        (3, 3, 3, True),
        (30, 3, 3, True),
        # Three dead letters in a row among many valid messages are no pattern.
        (200, 3, 3, False),
        (200, 20, 20, True),
    ],
)
def test_most_of_many_messages_or_all_of_the_latest_open_the_alarm(total, bad, in_a_row, broken):
    assert is_broken(total, bad, 0.5, in_a_row=in_a_row) is broken


def test_a_share_around_the_limit_neither_opens_nor_closes_the_alarm():
    assert not is_broken(200, 90, 0.5)
    assert not is_healthy(200, 90, 0.5)
    assert is_healthy(200, 50, 0.5)
    assert is_healthy(0, 0, 0.5)


def test_the_text_names_count_share_most_frequent_reason_and_framing():
    text = text_of("the latest 40 messages", 40, {"not_json": 20, "tombstone": 5}, "Correct it", framed=7)
    assert "25 of the latest 40 messages (62 %) are dead letters, 20 of them with not_json. 7 begin like" in text
    assert AlarmKind.many_dead_letters.with_runbook(text).endswith("Correct it (docs/runbooks/dead-letters.md)")
