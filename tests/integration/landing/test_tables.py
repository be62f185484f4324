"""Landing tables are created once, by the first process, and other tables of their name are refused."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from confluent_kafka import TopicCollection

from include.streams.lake.catalog import load_catalog
from include.streams.landing.tables import (
    LandingTableMismatch,
    create_landing_table,
    landing_schema,
    load_landing_table,
    raw_table,
    start_offsets,
    topic_id,
)
from tests.integration.landing.conftest import delete_records, rows

pytestmark = pytest.mark.integration


def test_a_table_can_be_created_by_many_at_once_and_again(landing_services, make_topic):
    topic = make_topic(partitions=3, landed=True)
    with ThreadPoolExecutor(4) as pool:
        tables = list(pool.map(lambda _: create_landing_table(topic), range(4)))
    assert len({table.metadata.table_uuid for table in [*tables, create_landing_table(topic)]}) == 1
    assert start_offsets(tables[0]) == {0: 0, 1: 0, 2: 0}


def test_a_table_records_its_topic_id_and_start_offsets(landing_services, make_topic, send, admin):
    topic = make_topic(partitions=2, landed=True)
    send(topic, b"{}", b"{}", b"{}", partition=1)
    delete_records(admin, topic, 1, before=2)
    table = create_landing_table(topic)
    assert start_offsets(table) == {0: 0, 1: 2}
    described = admin.describe_topics(TopicCollection([topic.name]))
    assert topic_id(table) == str(described[topic.name].result(10).topic_id)


def test_a_topic_that_does_not_exist_gets_no_table(landing_services, make_topic):
    topic = make_topic(landed=True)
    missing = type(topic)("missing.orders", topic.contract, key="number", partitions=1, retention=None, landed=True)
    with pytest.raises(LookupError, match=r"topic missing\.orders does not exist"):
        create_landing_table(missing)


def test_a_table_with_other_columns_or_partitions_is_refused(landing_services, make_topic):
    topic = make_topic(landed=True)
    load_catalog().create_namespace_if_not_exists("raw")
    load_catalog().create_table(raw_table(topic), landing_schema())
    with pytest.raises(LandingTableMismatch, match="not by the Kafka partition"):
        create_landing_table(topic)


def test_manifests_hold_no_bounds_of_values(landed_topic):
    topic = landed_topic()
    table = load_landing_table(topic)
    table.append(rows(topic, 0, range(3), value="Ada Lovelace, 12 High Street"))
    (task,) = table.scan().plan_files()
    assert 5 not in task.file.lower_bounds
    assert task.file.file_path.startswith("gs://landing/warehouse/raw/")
    assert "/partition=0/" in task.file.file_path
