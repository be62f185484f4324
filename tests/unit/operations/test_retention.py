"""Inbox rows are kept longer than any message that can still arrive again."""

from __future__ import annotations

import dataclasses
import importlib.util
from datetime import timedelta
from pathlib import Path

import pytest

from include.project import PROJECT
from include.streams.operations.retention import RetentionTooShort, check_inbox, rules
from tests.unit.contracts.orders import COMPLAINTS, TOPICS

DAG_FILE = Path(__file__).resolve().parents[3] / "dags" / "operations" / "maintain.py"
REST = {"claims_days": 90, "outbox_days": 30, "alarms_days": 365}


def test_a_too_short_inbox_retention_names_topic_numbers_and_remedy():
    with pytest.raises(RetentionTooShort) as caught:
        rules([COMPLAINTS], inbox_days=468, **REST)
    for part in ("468 days", "complaints", "365 as a dead letter", "90 in the topic", "set inbox_days to 469"):
        assert part in str(caught.value)
    rules([COMPLAINTS], inbox_days=469, **REST)


def test_the_longest_retention_of_the_topics_counts():
    longest = dataclasses.replace(COMPLAINTS, name="longest", retention=timedelta(days=200))
    with pytest.raises(RetentionTooShort, match="topic longest"):
        check_inbox(timedelta(days=480), [*TOPICS, longest])


def test_a_topic_with_unlimited_retention_needs_an_unlimited_inbox():
    for_ever = dataclasses.replace(COMPLAINTS, retention=None)
    with pytest.raises(RetentionTooShort, match="inbox_days to null"):
        rules([for_ever], inbox_days=100_000, **REST)
    tables = [rule.table.name for rule in rules([for_ever], inbox_days=None, **REST)]
    assert "inbox" not in tables
    assert "claims" in tables


def test_the_retention_of_the_dag_is_enough_for_the_registry():
    spec = importlib.util.spec_from_file_location("maintain", DAG_FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    days = module.maintain().params.dump()
    assert len(rules(PROJECT.topics, **days)) == 10
