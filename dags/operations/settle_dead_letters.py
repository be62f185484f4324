"""
### Settle dead letters

Marks dead letters in `<topic>.dlq` as "will not be replayed", with a reason; or reopens dead letters that were settled.
No replay sends a settled message.

**Starts** by hand, with parameters. A run changes nothing unless `dry_run` is off: it counts and lists the dead
letters, each as `partition@offset` in the dead-letter topic. Select by `letters`, by the reason why they are dead
letters, by time, or by the position of the messages on their own topic. Without a selection, all dead letters of the
topic are settled. Dead letters that were replayed are left out.

**Makes** rows in `replays` with the outcome `settled`. The dead letters stay in their topic. A row of
`operations_audit` says who did it.

**When it fails** clear the run: it continues.

Runbook: `docs/runbooks/dead-letters.md`.
"""

from datetime import timedelta

from airflow.sdk import dag, task

from include.project import PROJECT
from include.streams import Reason, task_defaults
from include.streams.operations.repair_runs import REPAIR, choice, letters, optional, repair_params


@dag(
    **REPAIR,
    dagrun_timeout=timedelta(hours=3),
    params=repair_params(
        action=choice(["settle", "reopen"], "settle, or undo it", default="settle"),
        topic=choice([topic.name for topic in PROJECT.topics], "its dead letters"),
        letters=letters(),
        letter_reason=optional("only those that became dead letters for this reason", enum=[*Reason]),
        since=optional("only those that became dead letters at this time or later", format="date-time"),
        until=optional("only those that became dead letters before this time", format="date-time"),
        partition=optional("only messages of this partition of their own topic", type="integer", minimum=0),
        from_offset=optional("from this offset of that partition", type="integer", minimum=0),
        until_offset=optional("before this offset of that partition", type="integer", minimum=0),
    ),
    default_args=task_defaults(timedelta(minutes=30), reported=False, retry_delay=timedelta(seconds=10)),
    tags=["operations", "kafka", "repair"],
    doc_md=__doc__,
)
def settle_dead_letters():
    @task
    def settle(params: dict | None = None, dag_run=None) -> dict:
        from include.streams.kafka.settling import settle_dead_letters
        from include.streams.operations.repair_runs import run_repair

        return run_repair(settle_dead_letters, params, dag_run, topics=PROJECT.topics)

    settle()


settle_dead_letters()
