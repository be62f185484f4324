"""Messages like those of samples: each keeps the contract and has an id of its own, except those that must not."""

from __future__ import annotations

import json
import threading
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from include.streams import At, ContractViolation, FromHeader, Registry
from include.streams.kafka.simulation import PLANTED, SampledTraffic, run
from tests import webhooks
from tests.unit.contracts.orders import ORDERS, message

TOPICS = Registry(ORDERS)


@pytest.fixture
def hooks(tmp_path: Path) -> SampledTraffic:
    webhooks.write_sample(tmp_path / "hooks.jsonl", 3)
    return SampledTraffic(
        topic=webhooks.topic(), samples=tmp_path / "hooks.jsonl", identified_by=FromHeader(webhooks.ID_HEADER), rate=500
    )


@pytest.fixture
def orders(tmp_path: Path) -> SampledTraffic:
    (tmp_path / "orders.jsonl").write_bytes(message() + b"\n")
    return SampledTraffic(topic=ORDERS, samples=tmp_path / "orders.jsonl", identified_by=At("order_id"), rate=500)


@pytest.fixture(params=["hooks", "orders"])
def traffic(request) -> SampledTraffic:
    return request.getfixturevalue(request.param)


def test_each_message_keeps_the_contract_and_has_another_id(traffic: SampledTraffic):
    found = list(islice(traffic.messages(), 60))
    events = [traffic.topic.parse(one.value.data, one.headers) for one in found]
    assert len({event.event_id for event in events}) == 60
    assert all(one.key for one in found)


def test_broken_messages_break_the_contract(traffic: SampledTraffic):
    found = traffic.broken()
    assert len(found) == PLANTED
    for one in found:
        with pytest.raises(ContractViolation):
            traffic.topic.parse(one.value.data, one.headers)


class Recorder:
    """A producer that acknowledges everything."""

    all: list[tuple[str, bytes | None]] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.acknowledged = 0

    def send(self, topic: str, *, key: bytes | None, value: bytes | None, headers: Any) -> None:
        self.acknowledged += 1
        self.all.append((topic, value))

    def flush(self) -> None: ...


def test_the_report_counts_what_was_sent(traffic: SampledTraffic, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Recorder, "all", sent := [])
    report = tmp_path / "report.json"
    assert run([traffic], 0.5, report, make_producer=Recorder)
    found = json.loads(report.read_text())
    name = traffic.topic.name
    assert found["finished"]
    assert found["planted_bad"] == {name: PLANTED}
    assert found["sent"][name] + PLANTED == len(sent)
    assert found["sent"][name] > 50


def test_a_stop_ends_it_early(traffic: SampledTraffic, tmp_path: Path):
    stop = threading.Event()
    stop.set()
    assert run([traffic], 1_000, tmp_path / "report.json", stop=stop, make_producer=Recorder)


def test_a_sample_whose_ids_cannot_be_changed_is_named(tmp_path: Path):
    (tmp_path / "orders.jsonl").write_bytes(message() + b"\n")
    traffic = SampledTraffic(topic=ORDERS, samples=tmp_path / "orders.jsonl", identified_by=At("version"))
    with pytest.raises(ValueError, match=r"takes none of the new ids .* for the sample at line 1"):
        next(traffic.messages())
