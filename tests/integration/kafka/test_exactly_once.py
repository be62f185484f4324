"""Each event has its effect exactly once, in any order of crashes, retries, redeliveries and zombies.

Hypothesis simulates the world: producers that repeat messages, runs that claim, tasks that are killed between any two
steps and retried, tasks that were declared dead and still run (zombies), committed offsets that are lost. The database
is real; the log is a list, so that thousands of worlds take a minute. Other tests use the real broker.
"""

import uuid
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import text

from include.streams.contracts import Topic
from include.streams.kafka.claims import claim, mark_handled
from include.streams.kafka.consumers import Consumer
from include.streams.kafka.handling import BatchProcessor, HandlingFailed
from include.streams.kafka.messages import Message
from include.streams.kafka.offsets import OffsetRange, Partition, PartitionOffsets
from include.streams.kafka.producer import Refusal
from include.streams.kafka.tasks import split
from include.streams.operations.database import begin
from tests.integration.kafka.conftest import Order, order

pytestmark = pytest.mark.integration

PARTITIONS = 2


class Killed(BaseException):
    """Stands for SIGKILL. It is not an Exception, because no code may catch it."""


@dataclass
class MemoryProducer:
    """Stores dead letters, or refuses them; can be killed before or after the broker has received them."""

    letters: list[tuple[str, bytes]] = field(default_factory=list)
    kill: str | None = None
    refuses: bool = False
    conn_id: str = "kafka_default"

    def try_sending(self, records, *, seconds):
        if self.kill == "before dead letter":
            raise Killed
        if self.refuses:
            return [Refusal("UNKNOWN_TOPIC_OR_PART", "no such topic")] * len(records)
        self.letters += [(record.topic, record.value) for record in records]
        if self.kill == "after dead letter":
            raise Killed
        return [None] * len(records)


@dataclass
class Task:
    """A chunk in progress, and its state."""

    run_id: str
    chunk: dict
    done: bool = False


KILLS = [None, "before dead letter", "after dead letter", "before record", "after record", "before mark"]


class World(RuleBasedStateMachine):
    @initialize()
    def begin_world(self):
        self.topic = Topic(f"orders.{uuid.uuid4().hex[:8]}", Order, key="number", partitions=PARTITIONS, retention=None)
        self.consumer = Consumer(
            name=f"world-{uuid.uuid4().hex}",
            topics=(self.topic,),
            effect="tests.integration.kafka.conftest:record_effect",
            max_messages_per_claim=6,
            chunk_size=2,
        )
        self.log = {n: [] for n in range(PARTITIONS)}
        self.committed = {}
        self.commits = []
        self.runs = {}
        self.tasks = []
        self.letters = []

    # The world

    @rule(partition=st.integers(0, PARTITIONS - 1), number=st.integers(0, 8), amount=st.sampled_from([1, 1, 1, 2]))
    def produce(self, partition, number, amount):
        """Few numbers, so that producers often repeat an event, also in another partition, or with other content."""
        self.log[partition].append(order(number, amount))

    @rule(partition=st.integers(0, PARTITIONS - 1))
    def produce_what_breaks_the_contract(self, partition):
        self.log[partition].append(f"bad {partition} {len(self.log[partition])}".encode())

    @rule()
    def lose_committed_offsets(self):
        self.committed = {}

    def available(self):
        return {
            Partition(self.topic.name, n): PartitionOffsets("id", 0, len(log), self.committed.get(n))
            for n, log in self.log.items()
        }

    def commit(self, positions):
        for partition, (_, offset) in positions.items():
            assert offset <= len(self.log[partition.number])
            self.committed[partition.number] = max(offset, self.committed.get(partition.number, 0))

    # Tasks

    @rule(killed=st.booleans())
    def claim_in_a_new_run(self, killed):
        self.claim(f"run {len(self.runs)}", killed)

    @rule(data=st.data(), killed=st.booleans())
    def clear_or_retry_a_run(self, data, killed):
        if self.runs:
            self.claim(data.draw(st.sampled_from(sorted(self.runs))), killed)

    def claim(self, run_id, killed):
        def commit(positions):
            if killed:
                raise Killed
            self.commit(positions)

        before = self.runs.setdefault(run_id, None)
        try:
            claimed = claim(self.consumer.name, run_id, self.available, commit, max_messages=6)
        except Killed:
            return
        assert before in (None, claimed.ranges), "a run is an immutable set of offset ranges"
        self.runs[run_id] = claimed.ranges
        self.tasks += [Task(run_id, chunk) for chunk in split(claimed, self.consumer.chunk_size)]

    @rule(data=st.data(), kill=st.sampled_from(KILLS), refuses=st.sampled_from([False, False, True]))
    def work(self, data, kill, refuses):
        """Any task may run at any time: as its first try, as a retry, or as a zombie after it was done."""
        if self.tasks:
            self.run(data.draw(st.sampled_from(self.tasks)), kill, refuses)

    def run(self, task, kill, refuses=False):
        producer = MemoryProducer(self.letters, kill, refuses)
        processor = BatchProcessor(self.consumer, task.run_id, producer)
        record = processor._record

        def record_or_die(good):
            if kill == "before record":
                raise Killed
            conflicts = record(good)
            if kill == "after record":
                raise Killed
            return conflicts

        processor._record = record_or_die
        try:
            for wanted in (OffsetRange(**r) for r in task.chunk["ranges"]):
                processor.handle([self.message(wanted, offset) for offset in range(wanted.start, wanted.end)])
                if kill == "before mark":
                    raise Killed
                with begin() as connection:
                    mark_handled(connection, task.chunk["claim_id"], wanted)
            task.done = True
        except (Killed, HandlingFailed):
            pass

    def message(self, wanted, offset):
        value = self.log[wanted.partition][offset]
        return Message(wanted.topic, wanted.topic_id, wanted.partition, offset, None, None, value, ())

    # Invariants: at any time, and at the end

    def effects(self):
        with begin() as connection:
            query = text("select number from test_effects where topic = :topic")
            return sorted(connection.scalars(query, {"topic": self.topic.name}))

    @invariant()
    def no_effect_happens_twice(self):
        if hasattr(self, "topic"):
            assert len(self.effects()) == len(set(self.effects()))

    @invariant()
    def claims_do_not_overlap(self):
        taken = [
            (r.partition, offset)
            for ranges in getattr(self, "runs", {}).values()
            for r in ranges or ()
            for offset in range(r.start, r.end)
        ]
        assert len(taken) == len(set(taken))

    def teardown(self):
        """At the end, killed tasks are retried. Then each message that was sent has an outcome."""
        if not hasattr(self, "topic"):
            return
        for run_id in sorted(self.runs):
            self.claim(run_id, False)
        while any(self.committed.get(n, 0) < len(log) for n, log in self.log.items()):
            self.claim(f"run {len(self.runs)}", False)
        for task in self.tasks:
            if not task.done:
                self.run(task, None)
        values = [value for log in self.log.values() for value in log]
        bad = {value for value in values if value.startswith(b"bad")}
        good = {value: Order.model_validate_json(value).number for value in values if value not in bad}
        assert self.effects() == sorted(set(good.values()))
        with begin() as connection:
            name = {"name": self.consumer.name}
            waiting = set(connection.scalars(text("select body from outbox where consumer = :name"), name))
            settled = "select count(*) from inbox where consumer = :name and outcome = 'dead_letter'"
            dead_letters = connection.scalar(text(settled), name)
        kept = {value for _, value in self.letters} | waiting
        assert kept - bad <= set(good), "only what contradicts an event that was handled is kept beside what is bad"
        assert bad <= kept
        assert dead_letters >= len(kept), "a letter for each message that is on record as one"
        with begin() as connection:
            rows = connection.scalar(text("select count(*) from inbox where consumer = :name"), name)
            still_open = connection.scalar(
                text("select count(*) from claims where consumer = :name and closed_at is null"), name
            )
        assert rows == len(values)
        assert still_open == 0


def test_any_interleaving_ends_with_each_effect_exactly_once(operations):
    run_state_machine_as_test(
        World,
        settings=settings(
            max_examples=30,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=False,
        ),
    )
