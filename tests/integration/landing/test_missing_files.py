"""A unit whose files are gone is planned again; an error with a similar text does not cause this."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from include.streams.landing import staging
from include.streams.landing.planning import claim_landed
from include.streams.landing.tables import load_landing_table
from include.streams.landing.validation import validate_unit
from tests.integration.landing.test_run import consumer, land, sale, sales

pytestmark = pytest.mark.integration
__all__ = ["consumer", "sales"]


def test_a_unit_whose_files_were_rewritten_is_planned_again(consumer, send):
    lane = consumer()
    send(lane.topic, sale(1), sale(2))
    land(lane.topic, 0, 0, sale(1), sale(2))
    (unit,) = claim_landed(lane, "run-1")
    table = load_landing_table(lane.topic)
    table.overwrite(table.scan().to_arrow())
    table.io.get_fs("gs").rm_file(unit["files"][0]["path"])  # type: ignore[attr-defined]
    assert validate_unit(lane, unit, "run-1")["good"] == 2


def test_an_error_that_mentions_404_is_not_a_missing_file(consumer, send, monkeypatch, caplog):
    lane = consumer()
    send(lane.topic, sale(1))
    land(lane.topic, 0, 0, sale(1))
    (unit,) = claim_landed(lane, "run-1")
    monkeypatch.setattr(staging, "upload", Mock(side_effect=PermissionError("bucket archive-404: forbidden")))
    with pytest.raises(PermissionError):
        validate_unit(lane, unit, "run-1")
    assert "planned again" not in caplog.text
