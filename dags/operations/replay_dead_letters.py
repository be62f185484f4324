"""
### Replay dead letters

Sends dead letters in `<topic>.dlq` that now keep their contract (after a repair, or because the code was fixed) back to
their topic. The message has its original key and headers, its value as repaired, and three more headers: `replay.of`,
`replay.count`, `replay.run_id`. Its event id is unchanged, so consumers handle a message once, however often it is
replayed.

**Starts** by hand, with parameters. A run changes nothing unless `dry_run` is off. Check the result of a dry run first.

**Makes** messages on the topic, rows in `replays` and `operations_audit`, and a table of what was done: in the log of
the task `replay` and in its return value. A dead letter that still fails stays, and every later run tries it again. A
message that fails again after its replay is a new dead letter, which only a run with `again` replays. Without dead
letters, both tasks are skipped.

**When it fails** clear the task `replay`: it continues, and does not send again what it has sent.

Runbook: `docs/runbooks/dead-letters.md`.
"""

from datetime import timedelta

from airflow.sdk import Param, dag, task

from include.project import PROJECT
from include.streams import Reason, task_defaults
from include.streams.operations.repair_runs import REPAIR, letters

Optional = {"default": None, "type": ["null", "integer"], "minimum": 0}


@dag(
    # With one run at a time: if a message has two dead letters, as after a crash, two concurrent runs could each send
    # one of them.
    **REPAIR,
    dagrun_timeout=timedelta(hours=3),
    params={
        "topic": Param(type="string", enum=[topic.name for topic in PROJECT.topics], description="its dead letters"),
        "reason": Param(None, type=["null", "string"], enum=[None, *Reason], description="why they are dead letters"),
        "since": Param(None, type=["null", "string"], format="date-time", description="when they became dead letters"),
        "until": Param(None, type=["null", "string"], format="date-time", description="before this time"),
        "partition": Param(**Optional, description="where the messages were on their topic"),
        "from_offset": Param(**Optional, description="the first offset there"),
        "until_offset": Param(**Optional, description="before this offset"),
        "letters": letters(),
        "limit": Param(100, type="integer", minimum=1, maximum=10_000, description="messages to send at most"),
        "again": Param(False, type="boolean", description="also those that were replayed and failed again"),
        "why": Param("", type="string", maxLength=500, description="why they are replayed; it is recorded"),
        "dry_run": Param(True, type="boolean", description="only show what would be done"),
    },
    default_args=task_defaults(timedelta(minutes=30), reported=False, retry_delay=timedelta(seconds=10)),
    tags=["operations", "kafka", "repair"],
    doc_md=__doc__,
)
def replay_dead_letters():
    @task
    def plan(params: dict | None = None) -> list[dict]:
        from include.streams.kafka.replay import plan_replay

        return plan_replay(params, PROJECT.topics)

    # The log shows the table only, without the same data as a dictionary.
    @task(show_return_value_in_logs=False)
    def replay(ranges: list[dict], params: dict | None = None, run_id: str | None = None, dag_run=None) -> dict:
        from include.streams.kafka.replay import replay
        from include.streams.operations.audit import Actor

        repairs = PROJECT.repairs_of(params["topic"])
        return replay(ranges, params, run_id, topics=PROJECT.topics, repairs=repairs, by=Actor.of_run(dag_run))

    replay(plan())


replay_dead_letters()
