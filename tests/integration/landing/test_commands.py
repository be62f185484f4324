"""The commands `gaps` and `repair` of `python -m include.streams.landing`, on real services."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from include.streams.contracts import Registry
from include.streams.landing import __main__ as command
from include.streams.landing.tables import connector_name, load_landing_table, raw_table
from tests.integration.kafka.conftest import order
from tests.integration.landing.conftest import alarms_of, delete_records, land, landed_rows, sink_commits

pytestmark = pytest.mark.integration

Answer = tuple[int, list[str]]


@pytest.fixture
def orders(landed_topic, operations, send_orders):
    """A topic with 30 messages in its only partition."""
    topic = landed_topic(partitions=1)
    send_orders(topic, 0, 30)
    return topic


@pytest.fixture
def ask(orders, monkeypatch, capsys) -> Callable[..., Answer]:
    """Run a command; returns its exit code and its lines."""
    monkeypatch.setattr(command, "load_registry", lambda reference: Registry(orders))

    def ask(*arguments: str) -> Answer:
        code = command.main(["--registry", "any:thing", *arguments])
        return code, capsys.readouterr().out.splitlines()

    return ask


def test_a_complete_table_is_reported_so_and_needs_no_repair(orders, ask):
    land(orders, 0, range(30))
    sink_commits(orders, _0=30)
    assert ask("gaps") == (0, [f"{raw_table(orders)}: complete"])
    snapshot = load_landing_table(orders).current_snapshot()
    assert ask("repair", connector_name(orders)) == (
        0,
        [f"{raw_table(orders)}: 0 records appended, 0 offsets hold no record"],
    )
    assert load_landing_table(orders).current_snapshot() == snapshot


def test_missing_offsets_are_shown_with_exit_code_1_and_appended_once(orders, ask):
    land(orders, 0, range(0, 10), range(15, 25))
    sink_commits(orders, _0=30)
    for arguments in (["gaps"], ["gaps", connector_name(orders)]):
        code, lines = ask(*arguments)
        assert code == 1
        assert len(lines) == 2
        for line, missing in zip(lines, ("[10, 15)", "[25, 30)"), strict=True):
            assert line.startswith(f"{raw_table(orders)}: {orders.name}-0")
            assert missing in line
    assert len(landed_rows(orders)) == 20, "to look changes nothing"

    assert ask("repair", connector_name(orders)) == (
        0,
        [f"{raw_table(orders)}: 10 records appended, 0 offsets hold no record"],
    )
    wanted = [(0, offset, order(f"0-{offset}").decode()) for offset in range(30)]
    assert landed_rows(orders) == wanted
    assert ask("repair", connector_name(orders)) == (
        0,
        [f"{raw_table(orders)}: 0 records appended, 0 offsets hold no record"],
    )
    assert landed_rows(orders) == wanted
    assert ask("gaps") == (0, [f"{raw_table(orders)}: complete"])


def test_offsets_that_kafka_no_longer_has_are_reported_as_lost(orders, ask, admin, caplog):
    land(orders, 0, range(0, 5), range(12, 30))
    delete_records(admin, orders, 0, before=10)
    code, lines = ask("gaps")
    assert code == 1
    assert "[5, 12)" in lines[0]
    code, lines = ask("repair", connector_name(orders))
    assert code == 1, "what is lost is no good answer"
    assert lines[0] == f"{raw_table(orders)}: 2 records appended, 0 offsets hold no record"
    assert lines[1].startswith(f"{raw_table(orders)}: 5 offsets are lost")
    assert "[5, 10)" in caplog.text, "the log names the lost offsets"
    assert [offset for _, offset, _ in landed_rows(orders)] == [*range(0, 5), *range(10, 30)]
    message, is_open = alarms_of(raw_table(orders))["messages_lost"]
    assert is_open
    assert "[5, 10)" in message
    # A reported loss is not reported again.
    assert ask("gaps") == (0, [f"{raw_table(orders)}: complete"])


def test_a_connector_without_a_topic_is_an_error(orders, ask, capsys):
    assert command.main(["--registry", "any:thing", "repair", "landing-nothing"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "landing-nothing" in printed.err
    assert connector_name(orders) in printed.err
