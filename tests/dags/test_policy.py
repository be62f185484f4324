"""Every Dag follows every rule, and every rule finds a violation."""

from __future__ import annotations

import pytest

from tests.dags import policy
from tests.dags.policy import EXEMPTIONS, POLICIES, PROJECT, DagFile, Declared, connections_in_code

# A Dag that follows every rule; each case below breaks one rule by replacing one line.
GOOD = '''"""What starts this, what it makes and what happens when it fails."""

from datetime import timedelta

from airflow.sdk import DAG, Asset, AssetWatcher, task
from airflow.sdk.definitions.timetables.assets import AssetTriggeredTimetable
from include.streams.kafka.schedules import joined
from include.streams.kafka.trigger import ConsumerLagTrigger
from include.streams.operations.task_defaults import task_defaults

WATCHER = AssetWatcher(name="orders", trigger=ConsumerLagTrigger(topics=["orders"], group="orders"))
ORDERS = Asset("orders", watchers=[WATCHER])

with DAG(
    "example",
    schedule=joined(ORDERS),
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=1),
    default_args=task_defaults(timedelta(minutes=5), owner="platform", retries=2),
    tags=["event-driven", "kafka"],
    doc_md=__doc__,
):

    @task
    def handle() -> list[int]:
        return [1, 2]

    @task
    def count(number: int) -> None: ...

    count.expand(number=handle())
'''
DECLARED = Declared(
    assets=frozenset({("orders", "orders")}),
    topics=frozenset({"orders"}),
    connections=frozenset({"kafka_default"}),
    pools=frozenset({"default_pool"}),
)
DEFAULTS = 'task_defaults(timedelta(minutes=5), owner="platform", retries=2)'
CATCHUP = "catchup=True, start_date=__import__('datetime').datetime(2026, 1, 1)"
PLAN = "        from include.streams import landing_tasks\n        return landing_tasks.plan(None, '')"
FIRST_TASK = "    @task\n    def handle"


def problems(rule, files: list[DagFile], declared: Declared) -> list[str]:
    return [problem for file in files for problem in rule(file, declared)]


@pytest.mark.parametrize("rule", POLICIES, ids=lambda rule: rule.__name__)
def test_every_dag(rule, dag_files: list[DagFile], declared: Declared):
    assert dag_files
    sentences = problems(rule, dag_files, declared)
    assert not sentences, "\n".join(sentences)


@pytest.mark.parametrize("rule", POLICIES, ids=lambda rule: rule.__name__)
def test_a_dag_that_follows_the_rules_passes(rule, write_dag):
    assert problems(rule, write_dag(GOOD, "event_driven"), DECLARED) == []


@pytest.mark.parametrize(
    ("rule", "line", "replacement", "expected"),
    [
        ("has_owner", 'owner="platform"', 'owner="airflow"', "task handle has no owner"),
        ("takes_task_defaults", DEFAULTS, '{"owner": "platform"}', "use task_defaults"),
        ("has_known_tags", '"kafka"]', '"Kafka"]', "unknown tags ['Kafka']"),
        ("has_known_tags", '"event-driven", ', "", "lacks the tag 'event-driven'"),
        ("is_documented", "    doc_md=__doc__,\n", "", "set doc_md=__doc__"),
        ("is_documented", GOOD.splitlines()[0], "", "no module docstring"),
        ("is_retried", "retries=2", "retries=0", "task count has no retries"),
        ("reports_its_failures", "retries=2", "reported=False", "task count lacks on_failure_callback, on_success"),
        ("has_timeouts", "timedelta(minutes=5)", "None", "task handle may hang"),
        ("has_timeouts", "    dagrun_timeout=timedelta(hours=1),\n", "", "a run may last for ever"),
        ("does_not_catch_up", "    max_active_runs", f"    {CATCHUP},\n    max_active_runs", "catchup is on"),
        ("goes_on_when_continuous", "schedule=joined(ORDERS)", 'schedule="@continuous"', "no start_date"),
        ("joins_its_events", "joined(ORDERS)", "[ORDERS]", "schedule=[ORDERS]; use one of ['joined'"),
        ("joins_its_events", "joined(ORDERS)", "ORDERS", "schedule=ORDERS"),
        ("joins_its_events", "joined(ORDERS)", "AssetTriggeredTimetable(ORDERS)", "schedule=AssetTriggeredTimetable"),
        ("limits_its_runs", "    max_active_runs=1,\n", "", "set max_active_runs="),
        ("is_short", "with DAG(", "\n" * 100 + "with DAG(", "lines, at most 110"),
        ("uses_declared_assets", 'Asset("orders"', 'Asset("order"', "declare it in the assets.py of its package"),
        ("uses_declared_assets", FIRST_TASK, '    @task(outlets=[Asset("new")])\n    def handle', "'new'"),
        ("uses_declared_assets", "joined(ORDERS)", 'ORDERS | Asset.ref(name="new")', "'new'"),
        ("uses_declared_topics", '["orders"], group', '["order"], group', "uses the topic 'order'"),
        ("uses_declared_connections", 'group="orders"', 'group="o", conn_id="other"', "connection 'other'"),
        (
            "repairs_gaps_before_it_plans",
            "        return [1, 2]",
            PLAN,
            "no task in front of it calls landing_tasks.rep",
        ),
        ("uses_declared_pools", FIRST_TASK, '    @task(pool="new")\n    def handle', "uses the pool 'new'"),
    ],
)
def test_a_dag_that_breaks_a_rule_is_named(rule, line, replacement, expected, write_dag):
    assert line in GOOD
    files = write_dag(GOOD.replace(line, replacement), "event_driven")
    sentences = problems(getattr(policy, rule), files, DECLARED)
    assert sentences
    assert all(problem.startswith("Dag example (event_driven/example.py): ") for problem in sentences)
    assert any(expected in problem for problem in sentences), sentences


def test_an_operators_topic_and_connection_are_checked(write_dag):
    produce = """
    from airflow.providers.apache.kafka.operators.produce import ProduceToTopicOperator

    ProduceToTopicOperator(task_id="send", topic="order", kafka_config_id="other", producer_function="a.b")
"""
    files = write_dag(GOOD + produce, "event_driven")
    assert "task send uses the topic 'order'" in problems(policy.uses_declared_topics, files, DECLARED)[0]
    assert "uses the connection 'other'" in problems(policy.uses_declared_connections, files, DECLARED)[0]


def test_a_task_that_ends_in_its_trigger_is_named(write_dag):
    wait = """
    from airflow.providers.standard.sensors.date_time import DateTimeSensorAsync

    DateTimeSensorAsync(task_id="wait", target_time="2026-01-01T00:00:00Z", end_from_trigger=True)
"""
    (sentences,) = problems(policy.ends_its_tasks_in_a_worker, write_dag(GOOD + wait, "event_driven"), DECLARED)
    assert "task wait sets end_from_trigger=True" in sentences


def test_a_dag_of_a_consumer_needs_no_failure_report(write_dag):
    source = GOOD.replace("retries=2", "reported=False")
    assert problems(policy.reports_its_failures, write_dag(source), DECLARED)
    source = source.replace("[1, 2]", "claim_messages(None, '')")
    source = source.replace("from datetime", "from include.streams import claim_messages\nfrom datetime", 1)
    assert problems(policy.reports_its_failures, write_dag(source), DECLARED) == []


def test_a_dag_outside_the_three_folders_is_named(write_dag):
    sentences = problems(policy.has_known_tags, write_dag(GOOD, "misc"), DECLARED)
    assert "move it to one of ['batch', 'event_driven', 'operations']" in sentences[0]


def test_every_exemption_is_still_needed(dag_files: list[DagFile]):
    rules = {rule.__name__ for rule in POLICIES}
    subjects = {file.dag.dag_id for file in dag_files}
    subjects |= {f"{file.dag.dag_id}.{task.task_id}" for file in dag_files for task in file.dag.tasks}
    for (rule, subject), reason in EXEMPTIONS.items():
        assert rule in rules, f"EXEMPTIONS names the rule {rule}, which does not exist: remove it"
        assert subject in subjects, f"EXEMPTIONS names {subject}, which does not exist: remove it"
        assert reason


def test_every_connection_in_the_code_is_declared(declared: Declared):
    used = [*connections_in_code(PROJECT / "include"), *connections_in_code(PROJECT / "dags")]
    assert used
    unknown = [f"{place}: connection {conn_id!r}" for place, conn_id in used if conn_id not in declared.connections]
    assert not unknown, "declare in airflow_settings.yaml or .env.example:\n" + "\n".join(unknown)


@pytest.mark.parametrize(
    "source",
    ['WEBHOOK_CONN_ID = "new"', 'def f(a, conn_id="new"): ...', 'f(http_conn_id="new")', 'c: str = f(conn_id="new")'],
)
def test_an_undeclared_connection_in_the_code_is_found(source, tmp_path):
    (tmp_path / "code.py").write_text(source)
    assert [conn_id for _, conn_id in connections_in_code(tmp_path)] == ["new"]
