"""An event is handed over at once, by the trigger runner of the installed Airflow."""

import asyncio

import pytest
from airflow.jobs.triggerer_job_runner import TriggerRunner, messages
from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from include.streams.compat.triggerer import hand_over_events


class Supervisor:
    """Stores the events that the runner sends, and requests in its answer that a trigger is cancelled."""

    def __init__(self) -> None:
        self.events: list = []
        self.is_called = asyncio.Event()

    async def asend(self, message):
        self.events += message.events or []
        self.is_called.set()
        await asyncio.sleep(0.05)
        return messages.TriggerStateSync(to_create=[], to_cancel={41})


class FiresOnce(BaseEventTrigger):
    handed_over = None

    def serialize(self):
        return "tests.unit.compat.test_triggerer.FiresOnce", {}

    async def run(self):
        yield TriggerEvent({"lag": 3})
        self.handed_over = hand_over_events()
        await asyncio.sleep(30)


def run_with(trigger: BaseEventTrigger, scenario) -> TriggerRunner:
    """Run the trigger in a runner without the loop that hands events over once a second."""

    async def main() -> TriggerRunner:
        runner = TriggerRunner()
        runner.comms_decoder = Supervisor()
        runner.triggers[7] = {"task": None, "is_watcher": True, "name": "seven", "events": 0}
        task = asyncio.create_task(runner.run_trigger(7, trigger))
        await scenario(runner, task)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.2)
        return runner

    return asyncio.run(main())


def test_an_event_reaches_the_supervisor_without_waiting_for_a_tick():
    trigger = FiresOnce()

    async def scenario(runner, _):
        await asyncio.wait_for(runner.comms_decoder.is_called.wait(), timeout=5)

    runner = run_with(trigger, scenario)
    assert trigger.handed_over is True
    assert [(entry.trigger_id, entry.event.payload) for entry in runner.comms_decoder.events] == [(7, {"lag": 3})]
    assert not runner.events


def test_the_answer_is_not_lost_when_the_trigger_is_cancelled():
    async def scenario(runner, task):
        await asyncio.wait_for(runner.comms_decoder.is_called.wait(), timeout=5)
        task.cancel()

    assert list(run_with(FiresOnce(), scenario).to_cancel) == [41]


def test_outside_a_triggerer_no_event_is_handed_over():
    async def scenario():
        trigger = FiresOnce()
        events = trigger.run()
        assert (await anext(events)).payload == {"lag": 3}
        waiting = asyncio.create_task(anext(events))
        await asyncio.sleep(0.05)
        waiting.cancel()
        return trigger.handed_over

    assert asyncio.run(scenario()) is False


class Changed:
    """A runner with another private method than the known one; `run_trigger` iterates over the trigger."""

    def __init__(self, method) -> None:
        if method is not None:
            self.sync_state_to_supervisor = method

    async def run_trigger(self, trigger, events: int) -> None:
        iterator = trigger.run()
        for _ in range(events):
            await anext(iterator)


class FiresOften(BaseEventTrigger):
    """Fires like the lag trigger, which treats every exception as an outage of the broker."""

    def serialize(self):
        return "tests.unit.compat.test_triggerer.FiresOften", {}

    async def run(self):
        while True:
            yield TriggerEvent({})
            hand_over_events()


async def raises(_):
    raise RuntimeError("the supervisor has another protocol")


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (None, "AttributeError"),
        (lambda: None, "TypeError"),
        (lambda finished: None, "TypeError"),
        (raises, "RuntimeError: the supervisor has another protocol"),
    ],
    ids=["no method", "another signature", "not a coroutine", "raises"],
)
def test_a_changed_runner_is_logged_once_and_stops_no_trigger(method, reason, monkeypatch, caplog):
    monkeypatch.setattr("include.streams.compat.triggerer._is_logged", False)

    async def scenario():
        await Changed(method).run_trigger(FiresOften(), events=5)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(scenario())
    (line,) = [record.getMessage() for record in caplog.records if record.name == "include.streams.compat.triggerer"]
    assert reason in line
    assert "nothing is lost" in line


def test_a_runner_that_is_not_found_is_logged_once(monkeypatch, caplog):
    monkeypatch.setattr("include.streams.compat.triggerer._is_logged", False)
    assert [hand_over_events(), hand_over_events()] == [False, False]
    assert len([record for record in caplog.records if "no TriggerRunner.run_trigger" in record.getMessage()]) == 1
