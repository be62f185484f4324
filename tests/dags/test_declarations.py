"""Every omission in a package is one sentence of `make test-fast`, with its remedy."""

from __future__ import annotations

from dataclasses import replace

import pytest

from include.project import PROJECT as OWN
from include.streams import Demo, KeyedAsset, Package, Project
from include.streams.operations.migrate import configurations
from tests.dags import declarations
from tests.dags.declarations import CHECKS, tables_have_revisions
from tests.dags.policy import DagFile
from tests.dags.shop import BOOK, COUNT, PROJECT, REFUND, SHOP
from tests.unit.operations.columns import declared

# Dags that use every declaration of tests/dags/shop.py; each case below changes one line.
GOOD = """
from airflow.sdk import dag, task

from include.streams import joined, joined_by_key
from tests.dags.shop import BOOK, COUNT, ORDERS_WAITING, REFUND, REFUNDS, RETURNS_WAITING

@dag(schedule=joined(ORDERS_WAITING))
def book():
    @task
    def claim(run_id=None):
        from include.streams import claim_messages

        return claim_messages(BOOK, run_id)

    @task
    def handle(chunk, run_id=None):
        from include.streams import handle_chunk

        handle_chunk(BOOK, chunk, run_id)

    handle.expand(chunk=claim())

@dag(schedule=joined(RETURNS_WAITING))
def fan_out():
    @task(outlets=[REFUNDS])
    def claim(run_id=None):
        from include.streams import claim_partition_keys

        claim_partition_keys(REFUND, run_id)

    claim()

@dag(schedule=joined_by_key(REFUNDS))
def refund():
    @task
    def handle(run_id=None):
        from include.streams import handle_message, partition_key

        handle_message(REFUND, partition_key(), run_id)

    handle()

@dag(schedule="@continuous", start_date=__import__("datetime").datetime(2026, 1, 1), max_active_runs=1)
def count():
    @task
    def run(run_id=None):
        from include.streams import landing_tasks

        units = landing_tasks.plan(COUNT, run_id)
        landing_tasks.close(COUNT, {}, run_id)

    run()

book(), fan_out(), refund(), count()
"""


def problems(files: list[DagFile], project: Project = PROJECT, *checks) -> list[str]:
    return [problem for check in checks or CHECKS for problem in check(project, files)]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_this_project(check, dag_files: list[DagFile]):
    sentences = list(check(OWN, dag_files))
    assert not sentences, "\n".join(sentences)


def test_every_table_of_this_project_has_a_revision():
    folders = [config.get_main_option("version_locations") for config in configurations().values()]
    revisions = [path for folder in folders for path in declarations.Path(folder).glob("*.py")]
    sentences = list(tables_have_revisions(declared().tables, revisions))
    assert not sentences, "\n".join(sentences)


def test_a_project_that_leaves_nothing_out_passes(write_dag):
    assert problems(write_dag(GOOD)) == []


@pytest.mark.parametrize(
    ("line", "replacement", "expected"),
    [
        (
            "claim_messages(BOOK, run_id)",
            "claim_messages(None, run_id)",
            "consumer book: no Dag calls claim_messages with it, so its messages wait for ever; write one",
        ),
        (
            "handle_chunk(BOOK, chunk, run_id)",
            "print(chunk)",
            "consumer book: no Dag calls handle_chunk with it",
        ),
        (
            "handle_message(REFUND, partition_key(), run_id)",
            "print(run_id)",
            "consumer refund: no Dag calls handle_message with it",
        ),
        ("landing_tasks.plan(COUNT, run_id)", "[]", "consumer count: no Dag calls landing_tasks.plan with it"),
        (
            "joined(ORDERS_WAITING)",
            "joined(RETURNS_WAITING)",
            "Dag book (batch/example.py): claims the consumer book, whose lag no asset that starts it watches "
            "(returns_waiting watches refund); add watchers=[lag_watcher(...)]",
        ),
        (
            "joined(ORDERS_WAITING)",
            "joined(RETURNS_WAITING)",
            "Dag book (batch/example.py): starts when refund is behind (asset returns_waiting) and does not claim",
        ),
        (
            "joined(ORDERS_WAITING)",
            'joined(__import__("airflow.sdk", fromlist=["Asset"]).Asset("orders_waiting"))',
            "claims the consumer book, whose lag no asset that starts it watches; add watchers=[lag_watcher(...)]",
        ),
        (
            "@task(outlets=[REFUNDS])",
            "@task",
            "Dag refund (batch/example.py): starts with the asset refunds, which has no watcher and which no task "
            "updates, so the Dag never starts; declare it with watchers=[lag_watcher(...)], or give a task",
        ),
        (
            "claim_partition_keys(REFUND, run_id)",
            "claim_partition_keys(BOOK, run_id)",
            "task claim calls claim_partition_keys with the consumer book, whose shape is chunked; use claim_messages",
        ),
    ],
)
def test_an_omission_of_a_dag_is_named_with_the_remedy(line, replacement, expected, write_dag):
    assert line in GOOD
    sentences = problems(write_dag(GOOD.replace(line, replacement)))
    assert any(expected in problem for problem in sentences), sentences


@pytest.mark.parametrize(
    ("package", "expected"),
    [
        (
            replace(SHOP, consumers=(BOOK,)),
            "task claim uses the consumer refund, which no package of include/project.py declares, so maintenance "
            "does not look after it; add it to consumers= of its package",
        ),
        (
            replace(SHOP, landing_consumers=()),
            "task run uses the consumer count, which no package of include/project.py declares, so maintenance does "
            "not look after it; add it to landing_consumers= of its package",
        ),
        (
            replace(SHOP, consumers=(replace(BOOK, effect="tests.dags.shop:bok"), REFUND)),
            "consumer book: its effect 'tests.dags.shop:bok' cannot be imported (AttributeError",
        ),
        (
            replace(SHOP, consumers=(replace(BOOK, effect="tests.dags.shop:prepare"), REFUND)),
            "consumer book: its effect 'tests.dags.shop:prepare' takes (message), and is called with",
        ),
        (
            replace(SHOP, consumers=(replace(BOOK, prepare="tests.dags.shop:none"), REFUND)),
            "consumer book: its function for preparing 'tests.dags.shop:none' cannot be imported",
        ),
        (
            replace(SHOP, landing_consumers=(replace(COUNT, suite="tests.dags.shop:suite"),)),
            "consumer count: its suite 'tests.dags.shop:suite' cannot be imported",
        ),
        (replace(SHOP, assets="tests.dags.no_assets"), "package shop: its assets 'tests.dags.no_assets' cannot be"),
        (replace(SHOP, repairs="tests.dags.shop:REPAIRS"), "package shop: its repairs 'tests.dags.shop:REPAIRS'"),
        (replace(SHOP, retention="tests.dags.shop:rules"), "package shop: its retention 'tests.dags.shop:rules'"),
        (replace(SHOP, nightly=("tests.dags.shop:tidy",)), "package shop: its nightly function 'tests.dags.shop:tidy'"),
        (replace(SHOP, demo=Demo(simulators="tests.dags.no")), "package shop: its simulators 'tests.dags.no'"),
        (
            replace(SHOP, keyed_assets=(KeyedAsset(asset="tests.dags.shop:NO", dag_id="refund", keys=REFUND),)),
            "package shop: its keyed asset 'tests.dags.shop:NO'",
        ),
    ],
)
def test_an_omission_of_a_package_is_named_with_the_remedy(package: Package, expected: str, write_dag):
    sentences = problems(write_dag(GOOD), Project(package))
    assert any(expected in problem for problem in sentences), sentences


def test_a_consumer_named_through_its_module_is_found(write_dag):
    source = GOOD.replace("import BOOK, COUNT", "import COUNT").replace("(BOOK, ", "(shop.BOOK, ")
    assert problems(write_dag(f"from tests.dags import shop\n{source}")) == []


def test_two_consumers_of_one_name_are_one_error():
    with pytest.raises(ValueError, match=r"^include/project\.py: two declarations of the consumer book; rename one"):
        Project(replace(SHOP, consumers=(BOOK, BOOK)))


def test_a_table_without_a_revision_is_named(tmp_path):
    (tmp_path / "shop_0001.py").write_text(
        'op.create_table(\n    "orders", ...)\nop.execute("CREATE TABLE IF NOT EXISTS returns (id int)")\n'
        'op.rename_table("old", "new")'
    )
    sentences = list(tables_have_revisions(["orders", "returns", "new", "refunds"], tmp_path.glob("*.py")))
    assert sentences == [
        "table refunds is declared, and no revision creates it, so every statement with it fails; add one to "
        "migrations/versions/ of its package (docs/your-own-topic.md)"
    ]
