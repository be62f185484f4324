"""Plain objects: which names and contents belong to a topic, and which offsets they hold."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from include.streams.contracts import PlainObjects
from include.streams.landing.decoding import DamagedObject, offsets_of, records_of
from tests.sinks import Sink

ENVELOPES = PlainObjects(prefix="gs://bucket/topics")
VALUES = PlainObjects(prefix="gs://bucket/topics", records="values")


@pytest.fixture
def stored(tmp_path):
    def store(content: bytes):
        path = tmp_path / "object"
        path.write_bytes(content)
        return path

    return store


def rows(path, source: PlainObjects, start: int = 0) -> list[tuple]:
    return [tuple(row.values()) for table in records_of(path, source, start) for row in table.to_pylist()]


@pytest.mark.parametrize(
    ("layout", "name", "place"),
    [
        ("confluent", "topics/orders/partition=3/orders+3+0000000042.json.gz", ("3", "0000000042")),
        ("confluent", "topics/orders/partition=3/orders+4+0000000042.json", None),
        ("confluent", "topics/orders2/partition=3/orders2+3+0000000042.json", None),
        ("confluent-time", "topics/orders/year=2026/month=01/orders+3+0000000042.json", ("3", "0000000042")),
        ("aiven", "topics/orders-3-42.gz", ("3", "42")),
        ("aiven", "topics/orders-3-42", ("3", "42")),
        ("aiven", "topics/orders-1-3-42", None),
        ("{any}/{topic}/{partition}-{start_offset}", "topics/2026/orders/3-42.jsonl", ("3", "42")),
    ],
)
def test_names(layout, name, place):
    source = PlainObjects(prefix="gs://bucket/topics/", layout=layout)
    match = source.names("orders").fullmatch(name)
    assert (match and (match["partition"], match["start_offset"])) == place
    if place:
        assert name.startswith(source.listed_below("orders"))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"prefix": "bucket/topics"}, "scheme"),
        ({"layout": "{topic}/{start_offset}"}, "all three"),
        ({"layout": "{topic}-{partition}-{start_offset}-{key}"}, "no placeholder key"),
        ({"layout": "confluent-time", "records": "values"}, "mix the offsets"),
        ({"is_dense": True}, "envelopes have offsets"),
    ],
)
def test_a_declaration_that_cannot_be_right_is_refused(settings, why):
    with pytest.raises(ValueError, match=why):
        PlainObjects(**{"prefix": "gs://bucket/topics", **settings})


def test_a_declaration_survives_a_trigger():
    source = PlainObjects(prefix="gs://b/t", group="connect-x", order_grace=timedelta(seconds=90))
    assert PlainObjects.of_json(json.loads(json.dumps(source.as_json()))) == source


@pytest.mark.parametrize("extension", [".json", ".json.gz"])
@pytest.mark.parametrize("value", ["json", "text", "base64"])
@pytest.mark.parametrize("records", ["envelope", "values"])
def test_each_form_of_a_record_is_read(stored, records, value, extension):
    source = PlainObjects(prefix="gs://bucket/topics", records=records, value=value)
    sent = {7: b'{"a":"\\u00e9"}', 8: None, 9: '{"b":"é"}'.encode()}
    path = stored(Sink("orders", source, extension).content(sent))
    assert offsets_of(path, source, 7) == ([(7, 10)], 3, [])
    found = rows(path, source, 7)
    assert [offset for offset, _, _ in found] == [7, 8, 9]
    texts = [value for _, _, value in found]
    if records == "values" and value == "json":
        # The line of a tombstone is the JSON null, which a message may hold too.
        assert texts[1] == b"null"
    else:
        assert texts[1] is None
    assert [json.loads(text) for text in (texts[0], texts[2])] == [{"a": "é"}, {"b": "é"}]
    if records == "envelope":
        assert {time for _, time, _ in found} == {datetime(2026, 1, 5, 10, tzinfo=UTC)}


def test_offsets_with_holes_and_in_any_order_are_found(stored):
    path = stored(Sink("orders", ENVELOPES).content({9: b"1", 3: b"2", 4: b"3"}))
    assert offsets_of(path, ENVELOPES, 3) == ([(3, 5), (9, 10)], 3, [])


def test_a_line_that_was_cut_off_does_not_count(stored):
    content = Sink("orders", ENVELOPES).content({n: b'{"a":1}' for n in range(5)})
    assert offsets_of(stored(content[:-10]), ENVELOPES, 0).offsets == [(0, 4)]
    assert offsets_of(stored(content[:-1]), ENVELOPES, 0).offsets == [(0, 5)]
    # A number does not show whether it was cut off.
    assert offsets_of(stored(b"123\n45"), VALUES, 0).offsets == [(0, 1)]


def test_lines_of_another_form_are_gaps_of_one_offset(stored):
    good = b'{"value":1,"offset":%d}\n'
    others = [
        b"not JSON",
        b"{}",
        b'{"value":1}',
        b'{"offset":5}',
        b'{"value":1,"offset":"6"}',
        b'{"value":1,"offset":-1}',
    ]
    content = good % 0 + b"\n".join([*others, b"\xff\xfe", b'{"value":1,"offset":99999999999999999999}', b""])
    path = stored(content + good % 9)
    assert offsets_of(path, ENVELOPES, 0) == ([(0, 1), (9, 10)], 2, [])
    assert [offset for offset, _, _ in rows(path, ENVELOPES)] == [0, 9]


@pytest.mark.parametrize("time", ["1e30", '"no time"', "null", "[1]", "9223372036854775807", '"9999-99-99"'])
def test_an_odd_time_is_no_time(stored, time):
    path = stored(b'{"value":1,"offset":0,"timestamp":%s}\n' % time.encode())
    assert rows(path, ENVELOPES) == [(0, None, b"1")]


@pytest.mark.parametrize("cut", [slice(-9), slice(0, 12)])
def test_a_truncated_gzip_is_damaged(stored, cut):
    content = gzip.compress(b'{"value":1,"offset":0}\n' * 1000)
    with pytest.raises(DamagedObject):
        offsets_of(stored(content[cut]), ENVELOPES, 0)


def test_a_flipped_bit_in_a_gzip_is_damage(stored):
    content = bytearray(gzip.compress(b"".join(b'{"value":%d,"offset":%d}\n' % (n, n) for n in range(1000))))
    content[len(content) // 2] ^= 16
    with pytest.raises(DamagedObject):
        offsets_of(stored(bytes(content)), ENVELOPES, 0)


def test_zstd_is_recognized_by_the_content(stored, tmp_path):
    path = tmp_path / "compressed"
    with pa.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(b'{"value":1,"offset":0}\n' * 2)
    assert offsets_of(path, ENVELOPES, 0) == ([(0, 1)], 2, [(0, 1)])


def parquet(path, **columns):
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path, compression="snappy")
    return path


def test_parquet_with_coordinates(tmp_path):
    path = parquet(
        tmp_path / "object",
        value=[{"a": 1, "b": "é"}, None, {"a": 2, "b": None}],
        offset=[7, 8, 11],
        timestamp=[1767607200000, None, 1767607200000],
    )
    assert offsets_of(path, ENVELOPES, 7) == ([(7, 9), (11, 12)], 3, [])
    time = datetime(2026, 1, 5, 10, tzinfo=UTC)
    assert rows(path, ENVELOPES, 7) == [
        (7, time, '{"a":1,"b":"é"}'.encode()),
        (8, None, None),
        (11, time, b'{"a":2,"b":null}'),
    ]


@pytest.mark.parametrize("value", [['{"a":1}', None], [b'{"a":1}', None]])
def test_parquet_with_text_or_bytes(tmp_path, value):
    path = parquet(tmp_path / "object", value=value, offset=[0, 1])
    assert rows(path, ENVELOPES) == [(0, None, b'{"a":1}'), (1, None, None)]


def test_parquet_with_values_only(tmp_path):
    path = parquet(tmp_path / "object", a=[1, 2], b=["x", None])
    assert offsets_of(path, VALUES, 5) == ([(5, 7)], 2, [])
    assert rows(path, VALUES, 5) == [(5, None, b'{"a":1,"b":"x"}'), (6, None, b'{"a":2,"b":null}')]


def test_parquet_of_another_form_or_cut_off_is_damaged(tmp_path):
    path = parquet(tmp_path / "object", a=[1, 2])
    with pytest.raises(DamagedObject, match="no column offset"):
        offsets_of(path, ENVELOPES, 0)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DamagedObject, match="no whole Parquet file"):
        offsets_of(path, VALUES, 0)
