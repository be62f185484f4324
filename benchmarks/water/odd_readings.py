"""Faults of meters and producers in the standard lane: nothing is killed, and other readings must not be affected.

Each fault sends readings of its own meters. The outcome of every message is known: a clean row, a duplicate, or a dead
letter.
"""

import json
import random
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from confluent_kafka import Producer
from sqlalchemy import text

from benchmarks.bench_stack import BenchStack
from include.water.sites import DISTRICTS
from include.water.topics import METER_READINGS, MeterReading

DISTRICT = min(DISTRICTS)
FIRST_METER = 900_000
TRANSACTIONS = 150
RANDOM_DATES = 2_000
# How long a Connect task may take to reach a record that it refuses, and how long a lane may take to begin a commit:
# minutes, while it works on readings of two thousand days.
WAIT_SECONDS = 900.0
# The kinds and keys that the alarms of a run must have had at least once.
ALARMS = ("meter_clock_ahead", "meter_sends_too_often", "records_stepped_over")

Send = Callable[[list[tuple[bytes, bytes]]], None]


class OddReadings:
    """Sends the readings of one fault after the other; `sent` has their values in order."""

    def __init__(self, bench: BenchStack) -> None:
        self._it = bench
        self._meters = FIRST_METER
        self._random = random.Random(11)
        self.sent: list[bytes | None] = []

    def faults(self) -> dict[str, Callable[[BenchStack], bool]]:
        """{fault: function}, like the faults that kill."""
        return {
            "clock ahead": lambda _: self.clock_ahead(),
            "meter sends every second": lambda _: self.too_often(),
            "readings at random dates": lambda _: self.random_dates(),
            "same event id, other content": lambda _: self.conflicts(),
            "mostly junk": lambda _: self.junk(),
            "gaps of transactions": lambda _: self.transactions(),
            "negative timestamp": lambda _: self.negative_timestamp(),
            "row lock lost in the clean commit": lambda _: self.lose_row_lock(),
        }

    def clock_ahead(self) -> bool:
        start = datetime(2031, 3, 1, tzinfo=UTC)
        return self._send(self._series([start + timedelta(hours=n) for n in range(48)]))

    def too_often(self) -> bool:
        start = _this_hour() - timedelta(hours=5)
        return self._send(self._series([start + timedelta(seconds=n) for n in range(400)]))

    def random_dates(self) -> bool:
        seconds = int((datetime(2199, 12, 31, tzinfo=UTC) - datetime(1970, 1, 2, tzinfo=UTC)).total_seconds())
        moments = sorted(self._random.sample(range(86_400, seconds), RANDOM_DATES))
        return self._send(self._series([datetime.fromtimestamp(second, UTC) for second in moments]))

    def conflicts(self) -> bool:
        series = self._series([_this_hour() - timedelta(hours=n) for n in range(1, 21)])
        other = self._series([_this_hour() - timedelta(hours=n) for n in range(1, 21)], litres=777, new_meter=False)
        return self._send([*series, *other, *series[:5]])

    def junk(self) -> bool:
        return self._send([(b"junk", b"\0\0\0\0\x07%d" % self._random.getrandbits(60)) for _ in range(500)])

    def transactions(self) -> bool:
        """Small transactions, every fourth aborted: each leaves offsets without a reading."""
        settings = self._it.stack.endpoints()["kafka"]["client_config"]
        producer = Producer({**settings, "transactional.id": f"odd-{self._meters}", "log_level": 2})
        producer.init_transactions(30)
        for number, (key, value) in enumerate(
            self._series([_this_hour() - timedelta(minutes=20 * n) for n in range(TRANSACTIONS)])
        ):
            producer.begin_transaction()
            producer.produce(METER_READINGS.name, key=key, value=value)
            producer.flush(30)
            if number % 4 == 3:
                producer.abort_transaction(30)
            else:
                producer.commit_transaction(30)
                self.sent.append(value)
        return True

    def negative_timestamp(self) -> bool:
        """Good readings in records that Kafka Connect refuses; returns whether a task has failed at one."""
        connector = "landing-meter-readings"
        self._send(self._series([_this_hour() - timedelta(hours=n) for n in range(3)]), timestamp=-62_135_596_800_000)
        deadline = time.monotonic() + WAIT_SECONDS
        query = "select 1 from alarms where source = :name and kind = 'records_stepped_over' and closed_at is null"
        while time.monotonic() < deadline:
            if "FAILED" in _states(self._it, connector) or self._it.query(query, name=connector):
                return True
            time.sleep(0.5)
        return False

    def lose_row_lock(self) -> bool:
        """End the connection that locks the claim's row, while its task commits to the clean table."""
        ended = text(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = current_database() "
            "and state = 'idle in transaction' and query ilike 'select claims.id%for update%'"
        )
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            with self._it.operations.begin() as connection:
                if connection.scalar(ended):
                    return True
            time.sleep(0.02)
        return False

    def _series(self, moments: list[datetime], *, litres: int = 0, new_meter: bool = True) -> list[tuple[bytes, bytes]]:
        """Readings of one meter; the counter grows by a liter with each."""
        self._meters += new_meter
        events = (
            MeterReading(
                version=1,
                meter_id=f"M-{self._meters}",
                district_id=DISTRICT,
                read_at=moment,
                litres_total=litres + number,
            )
            for number, moment in enumerate(moments)
        )
        return [METER_READINGS.serialize(event) for event in events]

    def _send(self, messages: list[tuple[bytes, bytes]], *, timestamp: int = 0) -> bool:
        for key, value in messages:
            self._it.producer.produce(METER_READINGS.name, key=key, value=value, timestamp=timestamp)
            self._it.producer.poll(0)
        if left := self._it.producer.flush(120):
            raise RuntimeError(f"{left} odd readings were not acknowledged")
        self.sent += [value for _, value in messages]
        return True


def _this_hour() -> datetime:
    return datetime.now(UTC).replace(minute=0, second=0, microsecond=0)


def _states(bench: BenchStack, connector: str) -> list[str]:
    """The states of the connector's tasks; nothing while Connect does not answer."""
    url = bench.stack.endpoints()["connect"]["url"]
    try:
        with urllib.request.urlopen(f"{url}/connectors/{connector}/status", timeout=5) as answer:
            return [task["state"] for task in json.load(answer)["tasks"]]
    except OSError:
        return []
