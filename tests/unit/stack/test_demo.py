"""`make demo` ends with 0 only if nothing is missing."""

import pytest

from stack.demo import links, one_line, unaccounted
from stack.observer import Snapshot

CONSUMERS = {"billing": ["orders"]}
SENT = {"sent": {"orders": 10, "visits": 5}, "planted_bad": {"orders": 2}, "finished": True}


@pytest.fixture
def complete():
    """A complete snapshot: ten orders, one of them sent twice by its producer, and two bad messages."""
    return Snapshot(
        messages={"orders": 12, "orders.dlq": 2, "visits": 5, "visits.dlq": 0},
        outcomes={("billing", "orders"): {"handled": 9, "duplicate": 1, "dead_letter": 2}},
        lag={"billing": 0},
    )


def test_everything_sent_is_accounted_for(complete):
    assert unaccounted(CONSUMERS, SENT, complete) == []


def test_a_message_without_an_inbox_row_is_missing(complete):
    complete.outcomes["billing", "orders"]["handled"] = 8
    assert unaccounted(CONSUMERS, SENT, complete) == ["billing: 1 messages of orders without an inbox row"]


def test_an_unproduced_message_is_missing_without_a_consumer(complete):
    complete.messages["visits"] = 4
    assert unaccounted(CONSUMERS, SENT, complete) == ["visits: 5 sent, 4 in the topic"]


def test_lag_is_not_accounted_for(complete):
    complete.lag["billing"] = 3
    assert unaccounted(CONSUMERS, SENT, complete) == ["billing: lag 3"]


def test_a_consumer_with_unknown_lag_is_not_accounted_for(complete):
    complete.lag.clear()
    assert unaccounted(CONSUMERS, SENT, complete) == ["billing: lag unknown"]


def test_an_open_claim_is_not_accounted_for(complete):
    complete.open_claims["billing"] = 1
    assert unaccounted(CONSUMERS, SENT, complete) == ["billing: 1 open claims"]


def test_a_bad_message_that_was_handled_is_not_accounted_for(complete):
    complete.outcomes["billing", "orders"] = {"handled": 11, "duplicate": 1}
    assert unaccounted(CONSUMERS, SENT, complete) == ["billing: 2 bad messages on orders, 0 in its dead letters"]


def test_a_recorded_but_unsent_dead_letter_is_not_accounted_for(complete):
    complete.messages["orders.dlq"] = 1
    assert unaccounted(CONSUMERS, SENT, complete) == ["billing: 2 bad messages on orders, 1 in its dead letters"]


def test_without_a_finished_report_nothing_is_accounted_for(complete):
    assert unaccounted(CONSUMERS, {}, complete) == ["the simulators did not finish"]
    assert "the simulators did not finish" in unaccounted(CONSUMERS, {**SENT, "finished": False}, complete)


def test_a_line_of_progress_is_one_line(complete):
    assert "in: orders 12, visits 5" in one_line(complete, 3.2)
    assert "dead letters: 2" in one_line(complete, 3.2)
    assert "\n" not in one_line(complete, 3.2)


def test_waiting_questions_are_shown_with_their_links():
    waiting = [(f"Refund {n}?", f"dags/refund/runs/{n}/tasks/ask/required_actions") for n in range(5)]
    lines = links("http://127.0.0.1:1", waiting)
    assert "waiting for a person: 5" in lines
    assert "  Refund 0?: http://127.0.0.1:1/dags/refund/runs/0/tasks/ask/required_actions" in lines
    assert "  and 2 more: http://127.0.0.1:1/required_actions" in lines
    assert not any("waiting" in line for line in links("http://127.0.0.1:1", []))


def test_the_demo_names_the_streams_page():
    assert links("http://127.0.0.1:1", [])[0] == "Streams, all consumers and topics: http://127.0.0.1:1/plugin/streams"


def test_landed_messages_must_be_claimed_and_their_runs_finished(complete):
    landing = {"hourly": ["visits"]}
    complete.lag["hourly"] = 0
    assert unaccounted(CONSUMERS, SENT, complete, landing) == []
    complete.open_claims["hourly"] = 1
    assert unaccounted(CONSUMERS, SENT, complete, landing) == ["hourly: 1 open claims"]
    complete.open_claims, complete.lag["hourly"] = {}, 5
    assert unaccounted(CONSUMERS, SENT, complete, landing) == ["hourly: lag 5"]


def test_an_awaited_result_is_waited_for(complete):
    complete.awaited["a leak becomes an alert"] = 0
    assert unaccounted(CONSUMERS, SENT, complete) == ["a leak becomes an alert: not yet"]
    complete.awaited["a leak becomes an alert"] = 2
    assert unaccounted(CONSUMERS, SENT, complete) == []
