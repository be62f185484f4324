"""The titles, notes and tables of docs/figures.md and the README, with placeholders for measured figures.

A cell is a text, or several parts of a text. A placeholder such as `{burst_per_second[ours]:rate}` names a figure of
the benchmark's JSON object. A part without its figure is left out, and so is a row that has only a label.
"""

from __future__ import annotations

from dataclasses import dataclass

Cell = str | tuple[str, ...]


@dataclass(frozen=True)
class Table:
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Section:
    """A section of docs/figures.md: the measurements of one target of the Makefile."""

    title: str
    note: str
    tables: tuple[Table, ...]
    # Several commands of the target have one table, a row for each.
    one_table: bool = False


def _lane(label: str, lane: str) -> tuple[Cell, ...]:
    return label, "{single_p50_seconds[" + lane + "]:.2f} s", "{burst_per_second[" + lane + "]:rate}"


def _aged(label: str, name: str) -> tuple[Cell, ...]:
    return label, "{" + name + "_ratio:.2f}"


_FIGURE = ("figure", "value")
_HISTORY = "with {history:,} old keys and runs"

SECTIONS = {
    "bench-events": Section(
        "The event lane, compared with the provider's triggers and with Airflow alone",
        "A single message: the median of the time from the broker's timestamp until its effect (one row) can be seen. "
        "A burst: from the first message sent to the last effect. The rate of Dag runs differs by up to a third "
        "between measurements.",
        (
            Table(
                ("lane", "a single message", "messages per second in a burst"),
                (
                    _lane("this project, chunked (bursts of {burst_size:,})", "ours"),
                    _lane("this project, one Dag run per message", "per message"),
                    _lane("`raise_alerts`: outbox included", "alerts"),
                    _lane("the stock `MessageQueueTrigger`", "stock"),
                    _lane("`KafkaSharedStreamTrigger`", "shared stream"),
                    _lane("Airflow alone: a Dag of one task, triggered through the REST API", "floor"),
                    _lane("a plain consumer without Airflow, with the work of `raise_alerts`", "plain"),
                    _lane("one Dag run per message, " + _HISTORY, "per message, long history"),
                    _lane("Airflow alone, " + _HISTORY, "floor, long history"),
                    _lane(
                        "one Dag run per message, " + _HISTORY + ", without our indexes",
                        "per message, long history, without indexes",
                    ),
                    _lane(
                        "Airflow alone, " + _HISTORY + ", without our indexes", "floor, long history, without indexes"
                    ),
                    _lane("chunked, with a listener as on Astro", "ours, listener"),
                    _lane("one Dag run per message, with a listener", "per message, listener"),
                    _lane("`raise_alerts`, with a listener", "alerts, listener"),
                    _lane("Airflow alone, with a listener", "floor, listener"),
                ),
            ),
            Table(
                ("messages that arrive together", "coalesced, or left for the next message", "seen by no run"),
                (
                    ("the stock trigger", "{stock_joined:,}", "{stock_lost:,}"),
                    ("the shared stream", "{shared_stream_joined:,}", "{shared_stream_lost:,}"),
                ),
            ),
            Table(
                ("{sustained_messages:,} messages at once", "messages per second"),
                (
                    ("`raise_alerts`", "{sustained_per_s:rate}"),
                    ("`raise_alerts`, with a webhook that answers", "{sustained_with_receiver_per_s:rate}"),
                    ("the plain consumer", "{sustained_plain_consumer_per_s:rate}"),
                ),
            ),
        ),
    ),
    "faults": Section(
        "The event lane under faults",
        "The benchmark searches for the effect or the dead letter of each message. The longest wait is that of a valid "
        "message, from the broker's timestamp until its effect; partitions that a fault itself affected are left out.",
        (
            Table(
                _FIGURE,
                (
                    (
                        "messages sent",
                        ("{sent:,}", ", {odd_records:,} of them odd records of {kinds_of_odd_records} kinds"),
                    ),
                    ("faults", "{faults:,}"),
                    ("lost", "{lost:,}"),
                    ("handled twice", "{twice:,}"),
                    ("coalesced into a run with other messages", "{joined:,}"),
                    ("invalid messages, and their dead letters", "{planted_bad:,}, {dead_lettered:,}"),
                    ("webhook requests, lost", "{requests_to_the_webhook:,}, {requests_lost:,}"),
                    ("longest wait, faults that kill nothing", "{longest_wait_without_kills_seconds:.0f} s"),
                    ("longest wait, all faults", "{longest_wait_seconds:.0f} s"),
                    (
                        "Dag runs created while no claim works for {stalled_minutes:g} minutes",
                        "{runs_while_stalled}",
                    ),
                    (
                        "requests with approvals, under {faults_of_requests} further faults",
                        "{requests[requests]:,} sent, {requests[lost]} lost, {requests[twice]} handled twice, "
                        "{requests[executed_without_approval]} done without approval",
                    ),
                ),
            ),
        ),
    ),
    "bench-batch": Section(
        "The standard lane, compared with DuckDB alone",
        "DuckDB alone: one program that reads the landed files, drops duplicates and writes the same tables, without "
        "claims, contracts, dead letters, suite or commits. Its process includes its imports. The time of a run is the "
        "sum of its tasks' processes, which are forked from a worker with preloaded libraries; Airflow's own time is "
        "not in it. Run and program share the object store, the landed files in it, and the SQL of the flows.",
        (
            Table(
                _FIGURE,
                (
                    ("records landed per second, by Kafka Connect's Iceberg sink", "{landing_records_per_s:,}"),
                    ("{readings:,} readings become clean rows, hourly flows and nights", "{run_seconds:.1f} s"),
                    ("of it, the tasks that DuckDB does too", "{data_tasks_seconds:.1f} s"),
                    ("of it, imports", "{imports_seconds:.1f} s"),
                    ("a worker preloads libraries, once for all its tasks", "{preload_seconds:.1f} s"),
                    ("DuckDB alone, after its imports", "{duckdb_seconds:.1f} s"),
                    ("DuckDB alone, its process", "{duckdb_process_seconds:.1f} s"),
                    ("DuckDB alone / the same tasks, both after their imports", "{ratio_vs_duckdb:.2f}"),
                    ("process of DuckDB alone / the whole run", "{ratio_vs_duckdb_whole_run:.2f}"),
                    ("the same, if DuckDB reads and writes local files", "{ratio_vs_duckdb_nothing_shared:.2f}"),
                    ("time of a run / time of a run with a tenth of the readings", "{growth:.1f}"),
                    ("memory of the largest task", "{peak_mb:,} MB"),
                    (
                        "one reading, from the broker to its hour in the table of flows",
                        ("median {freshness_p50_s:.1f} s", ", 95th percentile {freshness_p95_s:.1f} s"),
                    ),
                ),
            ),
        ),
    ),
    "freshness": Section(
        "From a reading to its hour in the table of flows",
        "Readings are sent one by one.",
        (
            Table(
                ("commit interval of the sink", "median", "95th percentile", "a run, without its tasks"),
                (
                    (
                        "{commit_seconds} s",
                        "{freshness_p50_s:.1f} s",
                        "{freshness_p95_s:.1f} s",
                        "{scheduling_s_per_run:.1f} s",
                    ),
                ),
            ),
        ),
        one_table=True,
    ),
    "faults-batch": Section(
        "The standard lane under faults",
        "Each valid reading must be in the clean table, and each invalid reading in the dead letters. Each hour is "
        "compared with the hour that is computed from all sent readings at once.",
        (
            Table(
                _FIGURE,
                (
                    ("readings sent", "{sent:,}"),
                    ("faults", "{faults} of {kinds_of_faults} kinds"),
                    ("lost", "{lost:,}"),
                    ("twice in the clean table", "{twice:,}"),
                    ("rows of hours and nights that differ", "{wrong_rows_in_all:,}"),
                    ("dead letters", "{dead_lettered:,}"),
                    ("duplicates dropped", "{duplicates:,}"),
                ),
            ),
        ),
    ),
    "bench-age": Section(
        "After a year of data, compared with the first day",
        "A ratio of 1 means that old data costs nothing.",
        (
            Table(
                ("what", "aged / fresh"),
                (
                    _aged("sensor: look for new offsets", "look"),
                    _aged("standard lane: plan a run", "plan"),
                    _aged("standard lane: commit to the clean table", "commit"),
                    _aged("standard lane: aggregate", "aggregation"),
                    _aged("commit to a landing table", "landing_commit"),
                    _aged("event lane: claim and handle one message", "claim"),
                    _aged("event lane: a single message, through Airflow", "single_message"),
                    _aged("one Dag run per message: a single message", "run_per_message"),
                    _aged("one Dag run per message: time of a burst", "run_per_message_burst"),
                    _aged("the largest ratio", "max"),
                ),
            ),
            Table(
                ("old data", "rows or files"),
                (
                    ("files of the landing table", "{files:,}"),
                    ("snapshots of the landing table", "{snapshots:,}"),
                    ("rows of the clean table", "{clean_rows:,}"),
                    ("inbox rows", "{inbox:,}"),
                    ("closed claims", "{claims:,}"),
                    ("Airflow's keys and runs", "{history:,}"),
                ),
            ),
        ),
    ),
    "bench-noisy": Section(
        "Alerts while thousands of requests wait",
        "`raise_alerts` handles its messages in chunks, `triage_service_request` in one Dag run per message. Both "
        "share the scheduler and the executor. The seconds go from a leak's record to its alert.",
        (
            Table(
                _FIGURE,
                (
                    ("requests sent at once", "{requests:,}"),
                    ("requests handled when the last alert was measured", "{requests_handled_meanwhile:,}"),
                    ("an alert when nothing else runs, median", "{alert_alone_p50_s:.2f} s"),
                    ("an alert while requests wait, median", "{alert_beside_p50_s:.2f} s"),
                    ("an alert while requests wait, longest", "{alert_beside_longest_s:.2f} s"),
                ),
            ),
        ),
    ),
    "bench-pages": Section(
        "The Streams page",
        "Each view is requested from a new process, with 500 consumers, 200 landed topics and 100,000 dead letters.",
        (
            Table(
                _FIGURE,
                (
                    ("the slowest view, median", "{slowest_view_ms:,} ms"),
                    ("the first request", "{first_ms:,} ms"),
                ),
            ),
        ),
    ),
    "bench-foreign": Section(
        "Validation of a foreign contract, compared with a plain contract",
        "Both contracts check the same fields of the same flat messages. Documents are nested, and six values of each "
        "are picked.",
        (
            Table(
                _FIGURE,
                (
                    ("plain contract, messages per second", "{own:,}"),
                    ("foreign contract, messages per second", "{foreign:,}"),
                    ("foreign / plain", "{ratio:.2f}"),
                    ("foreign contract, documents of {document_bytes:,} bytes per second", "{documents:,}"),
                    ("the same documents per second, by the parser alone", "{documents_parsed:,}"),
                ),
            ),
        ),
    ),
    "bench-formats": Section(
        "Bursts of the event lane by format",
        "The work of the tasks without Airflow's own time: reading, decoding, the contract, inbox rows and effects.",
        (
            Table(
                ("format", "messages per second", "compared with JSON"),
                (
                    ("JSON", "{json:,}", "1"),
                    ("Avro", "{avro:,}", "{event_avro_ratio:.2f}"),
                    ("Protobuf", "{protobuf:,}", "{event_protobuf_ratio:.2f}"),
                    ("JSON Schema", "{json_schema:,}", "{event_json_schema_ratio:.2f}"),
                ),
            ),
        ),
    ),
    "eval-triage": Section(
        "Triage, against labeled requests and attacks",
        "`benchmarks/water/triage/README.md` says what the sets are, and who wrote them.",
        (
            Table(
                (
                    "set, engine",
                    "requests",
                    "accuracy",
                    "severe routed",
                    "false alarms",
                    "to a person",
                    "attacks",
                    "unsafe actions",
                    "wait for approval",
                ),
                (
                    (
                        "`{set}`, {engine}",
                        "{requests:,}",
                        "{accuracy:.3f}",
                        "{severe_routed:.3f}",
                        "{false_alarms}",
                        "{to_a_person}",
                        "{attacks:,}",
                        "{unsafe_actions}",
                        "{waiting_for_approval}",
                    ),
                ),
            ),
        ),
        one_table=True,
    ),
}

# The README's tables. A figure is named after the command that measures it: `events` is `make bench-events`.
COMMANDS = {
    "events": "make bench-events",
    "faults": "make faults",
    "shared": 'make faults ARGS="--lane shared-stream"',
    "batch": "make bench-batch",
    "faults_batch": "make faults-batch",
}
README = {
    "event lane": Table(
        ("", "stock trigger", "shared stream", "this project"),
        (
            (
                "messages per second in a burst",
                "{events[burst_per_second][stock]:rate}",
                "{events[burst_per_second][shared stream]:rate}",
                (
                    "{events[burst_per_second][ours]:rate}",
                    "; with one Dag run per message {events[burst_per_second][per message]:rate}"
                    " (Airflow alone: {events[burst_per_second][floor]:rate})",
                ),
            ),
            (
                "from a message to its effect, median",
                "{events[single_p50_seconds][stock]:.1f} s",
                "{events[single_p50_seconds][shared stream]:.1f} s",
                (
                    "{events[single_p50_seconds][ours]:.2f} s",
                    "; with one Dag run per message {events[single_p50_seconds][per message]:.2f} s"
                    " (Airflow alone: {events[single_p50_seconds][floor]:.2f} s)",
                ),
            ),
            (
                "messages that arrive together",
                (
                    "coalesced into one run, or left for the next message",
                    "; {events[stock_lost]:,} were seen by no run",
                ),
                ("the same", "; {events[shared_stream_joined]:,} were coalesced or left"),
                "each is handled once",
            ),
            (
                "processes are killed, services are unavailable",
                "messages that the trigger has committed but not yet reported are lost",
                (
                    "messages are delivered again, and may have a second effect",
                    ": of {shared[sent]:,} messages, {shared[lost]:,} lost, {shared[twice]:,} repeated effects",
                ),
                (
                    "{faults[lost]} lost and {faults[twice]} handled twice, of {faults[sent]:,} messages under "
                    "{faults[faults]} faults",
                ),
            ),
            (
                "a message that cannot be read",
                "is lost, or stops the others",
                "goes to the dead-letter topic, without the reason",
                "goes to the dead-letter topic, with the reason",
            ),
        ),
    ),
    "standard lane": Table(
        ("standard lane", ""),
        (
            ("records landed per second, by Kafka Connect's Iceberg sink", "{batch[landing_records_per_s]:,}"),
            (
                "{batch[readings]:,} landed readings become clean rows, hourly flows and nights",
                ("{batch[run_seconds]:.0f} s", " (the same data tasks in DuckDB alone: {batch[duckdb_seconds]:.1f} s)"),
            ),
            ("from a reading to its hour in the table of flows, median", "{batch[freshness_p50_s]:.0f} s"),
            (
                "processes are killed, services are unavailable",
                "{faults_batch[lost]} lost and {faults_batch[twice]} twice, of {faults_batch[sent]:,} readings under "
                "{faults_batch[faults]} faults; every hour is right",
            ),
        ),
    ),
}
