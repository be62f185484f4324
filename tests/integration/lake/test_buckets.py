"""Objects on a real object store, checked from outside with a client of the test's own."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from google.api_core.exceptions import PreconditionFailed
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from include.streams.lake import buckets
from include.streams.lake.buckets import ABSENT, Bucket, BucketError, GenerationChanged

pytestmark = pytest.mark.integration


@pytest.fixture
def client(object_store) -> storage.Client:
    return storage.Client(project="local", credentials=AnonymousCredentials())


@pytest.fixture
def bucket(client: storage.Client, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty bucket, named by the Variable."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    client.create_bucket(name)
    monkeypatch.setenv("AIRFLOW_VAR_ARTIFACTS_BUCKET", name)
    return buckets.bucket()


def test_a_written_object_is_read_by_others_with_its_generation(bucket: Bucket, client: storage.Client):
    generation = bucket.write("a/b.json", b'{"a": 1}', "application/json")
    found = client.bucket(bucket.name).get_blob("a/b.json")
    assert (found.download_as_bytes(), found.content_type, found.generation) == (
        b'{"a": 1}', "application/json", generation,
    )  # fmt: skip
    assert bucket.read("a/b.json") == (b'{"a": 1}', generation)


def test_a_missing_object_reads_as_none(bucket: Bucket):
    assert bucket.read("nothing") is None


def test_an_object_is_replaced_only_if_it_is_unchanged_since_the_read(bucket: Bucket):
    first = bucket.write("champion.json", b"1")
    second = bucket.write("champion.json", b"2", if_generation_match=first)
    with pytest.raises(GenerationChanged, match=f"has generation {second}, not {first}"):
        bucket.write("champion.json", b"3", if_generation_match=first)
    assert bucket.read("champion.json") == (b"2", second)


def test_an_object_is_created_only_once(bucket: Bucket):
    bucket.write("new", b"mine", if_generation_match=ABSENT)
    with pytest.raises(GenerationChanged):
        bucket.write("new", b"yours", if_generation_match=ABSENT)
    assert bucket.read("new")[0] == b"mine"
    with pytest.raises(GenerationChanged, match="does not exist"):
        bucket.write("never", b"x", if_generation_match=5)


def test_an_update_is_repeated_on_content_of_another_writer(bucket: Bucket):
    seen: list[bytes | None] = []

    def append(content: bytes | None) -> bytes:
        seen.append(content)
        if len(seen) == 1:
            bucket.write("log", b"theirs")
        return (content or b"") + b" mine"

    assert bucket.update("log", append)
    assert seen == [None, b"theirs"]
    assert bucket.read("log")[0] == b"theirs mine"
    assert not bucket.update("log", lambda content: None)
    assert bucket.read("log")[0] == b"theirs mine"


def test_an_update_fails_when_another_process_writes_in_each_try(bucket: Bucket):
    tries: list[bytes | None] = []

    def contested(content: bytes | None) -> bytes:
        tries.append(content)
        bucket.write("log", b"%d" % len(tries))
        return b"mine"

    with pytest.raises(GenerationChanged):
        bucket.update("log", contested)
    assert len(tries) == buckets.UPDATE_TRIES
    assert bucket.read("log")[0] == b"%d" % len(tries)


def test_of_many_writers_at_once_exactly_one_wins(bucket: Bucket):
    def write(number: int) -> bool:
        try:
            buckets.bucket().write("race", str(number).encode(), if_generation_match=ABSENT)
        except GenerationChanged:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(write, range(8)))
    assert won.count(True) == 1
    assert bucket.read("race")[0] == str(won.index(True)).encode()


def test_a_write_whose_response_was_lost_counts_as_written(bucket: Bucket, monkeypatch: pytest.MonkeyPatch):
    stock = storage.Blob.upload_from_string

    def lose_the_answer(self, *args, **kwargs):
        stock(self, *args, **kwargs)
        raise PreconditionFailed("what the client's own repetition is told")

    monkeypatch.setattr(storage.Blob, "upload_from_string", lose_the_answer)
    generation = bucket.write("once", b"mine", if_generation_match=ABSENT)
    monkeypatch.undo()
    assert bucket.read("once") == (b"mine", generation)


def test_objects_are_listed_by_prefix_and_deleted_once_or_twice(bucket: Bucket, client: storage.Client):
    for path in ("models/b/2", "models/b/1", "models/c", "reports/x"):
        bucket.write(path, path.encode())
    found = bucket.list("models/b/")
    assert [(entry.path, entry.size) for entry in found] == [("models/b/1", 10), ("models/b/2", 10)]
    assert found[0].generation == bucket.read("models/b/1")[1]
    bucket.delete("models/b/1")
    bucket.delete("models/b/1")
    assert [blob.name for blob in client.list_blobs(bucket.name, prefix="models/b/")] == ["models/b/2"]


def test_a_missing_bucket_is_an_error_and_not_a_missing_object(object_store):
    missing = buckets.bucket("no-such-bucket")
    for call in (
        lambda: missing.read("a"),
        lambda: missing.write("a", b"a"),
        lambda: missing.list(),
        lambda: missing.delete("a"),
    ):
        with pytest.raises(BucketError, match="bucket no-such-bucket does not exist"):
            call()


def test_the_bucket_is_named_artifacts_unless_the_variable_names_another(object_store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("AIRFLOW_VAR_ARTIFACTS_BUCKET", raising=False)
    assert buckets.bucket().name == "artifacts"
    monkeypatch.setenv("AIRFLOW_VAR_ARTIFACTS_BUCKET", "elsewhere")
    assert buckets.bucket().name == "elsewhere"
