"""
### Replay dead letters

Sends dead letters in `<topic>.dlq` that now keep their contract (after a repair, or because the code was fixed) back to
their topic. The message has its original key and headers, its value as repaired, and three more headers: `replay.of`,
`replay.count`, `replay.run_id`. Its event id stays, so consumers act on a message once, however often it is replayed.

**Starts** by hand, with parameters. A run changes nothing unless `dry_run` is off: look first, then replay.

**Makes** messages on the topic, rows in `replays`, and a table of what was done: the log of the task `show` and its
return value. A dead letter that still fails stays, and every later run tries it again. A message that fails again after
its replay is a new dead letter. It is left alone until a run is started with `again`.

**When it fails** clear the task: messages that were sent before are recorded and are not sent again.

Runbook: `docs/runbooks/dead-letters.md`.
"""

from datetime import timedelta

from airflow.providers.apache.kafka.operators.consume import ConsumeFromTopicOperator
from airflow.sdk import Param, dag, task

from include.project import PROJECT
from include.streams import Reason, task_defaults
from include.streams.kafka.replay import require_report

Optional = {"default": None, "type": ["null", "integer"], "minimum": 0}


@dag(
    schedule=None,
    catchup=False,
    # Two concurrent runs would be in one consumer group: each would get only some partitions of the dead-letter topic.
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=3),
    params={
        "topic": Param(type="string", enum=[topic.name for topic in PROJECT.topics], description="its dead letters"),
        "reason": Param(None, type=["null", "string"], enum=[None, *Reason], description="why they are dead letters"),
        "since": Param(None, type=["null", "string"], format="date-time", description="when they became dead letters"),
        "until": Param(None, type=["null", "string"], format="date-time", description="before this time"),
        "partition": Param(**Optional, description="where the messages were on their topic"),
        "from_offset": Param(**Optional, description="the first offset there"),
        "until_offset": Param(**Optional, description="before this offset"),
        "limit": Param(100, type="integer", minimum=1, maximum=10_000, description="messages to send at most"),
        "again": Param(False, type="boolean", description="also those that were replayed and failed again"),
        "dry_run": Param(True, type="boolean", description="only show what would be done"),
    },
    default_args=task_defaults(timedelta(minutes=30), reported=False, retry_delay=timedelta(seconds=10)),
    tags=["operations", "kafka", "repair"],
    doc_md=__doc__,
)
def replay_dead_letters():
    @task
    def plan(params: dict, run_id: str | None = None) -> list[dict]:
        from include.streams.kafka.replay_plan import plan_replay

        repairs = PROJECT.repairs_of(params["topic"])
        return plan_replay(params, run_id, registry="include.project:PROJECT.topics", repairs=repairs)

    # Mapped over one plan or none: how much there is to read is known only at run time.
    replay = ConsumeFromTopicOperator.partial(
        task_id="replay",
        kafka_config_id="kafka_dead_letters",
        apply_function="include.streams.kafka.replay.replay_dead_letter",
        return_apply_function_results=True,
        # Progress is in the table `replays`. Committed offsets would hide dead letters that still fail from the next
        # run.
        commit_cadence="never",
        # With a larger batch, the operator waits its whole poll_timeout to fill the last batch.
        max_batch_size=1,
        # Longer than a killed task stays a member of the group: until then the next task gets no partition.
        poll_timeout=60,
        post_execute=require_report,
    ).expand_kwargs(plan())

    # The log shows the table only, without the same data as a dictionary.
    @task(show_return_value_in_logs=False)
    def show(reports: list[list[dict]]) -> dict:
        from include.streams.kafka import replay

        return replay.show(reports)

    show(replay.output)


replay_dead_letters()
