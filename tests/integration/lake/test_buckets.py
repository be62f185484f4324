"""Objects on real object stores, checked from outside with a client of the test's own."""

from __future__ import annotations

import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import boto3
import pytest
from airflow.sdk.exceptions import AirflowNotFoundException
from botocore.config import Config
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from include.streams.lake import buckets
from include.streams.lake.amazon import AmazonBucket
from include.streams.lake.buckets import ABSENT, Bucket, BucketError, GenerationChanged, UnsafeStore

pytestmark = pytest.mark.integration


class Google:
    """Google's own client."""

    scheme: ClassVar[str] = "gs"

    def __init__(self) -> None:
        self._client = storage.Client(project="local", credentials=AnonymousCredentials())

    def create_bucket(self, name: str) -> None:
        self._client.create_bucket(name)

    def read(self, bucket: str, path: str) -> tuple[bytes, str]:
        blob = self._client.bucket(bucket).get_blob(path)
        return blob.download_as_bytes(), blob.content_type

    def list(self, bucket: str) -> list[str]:
        return [blob.name for blob in self._client.list_blobs(bucket)]


class Amazon:
    """Amazon's own client."""

    scheme: ClassVar[str] = "s3"

    def __init__(self, connection: dict[str, Any]) -> None:
        self._client = boto3.client(
            "s3",
            aws_access_key_id=connection["login"],
            aws_secret_access_key=connection["password"],
            config=Config(request_checksum_calculation="when_required"),
            **connection["extra"],
        )

    def create_bucket(self, name: str) -> None:
        self._client.create_bucket(Bucket=name)

    def read(self, bucket: str, path: str) -> tuple[bytes, str]:
        answer = self._client.get_object(Bucket=bucket, Key=path)
        return answer["Body"].read(), answer["ContentType"]

    def list(self, bucket: str) -> list[str]:
        return [found["Key"] for found in self._client.list_objects_v2(Bucket=bucket).get("Contents", ())]


@pytest.fixture(params=["gs", "s3"])
def client(request: pytest.FixtureRequest) -> Google | Amazon:
    if request.param == "gs":
        request.getfixturevalue("object_store")
        return Google()
    services = request.getfixturevalue("s3_services")
    return Amazon(json.loads(services.environment()["AIRFLOW_CONN_AWS_DEFAULT"]))


@pytest.fixture
def bucket(client: Google | Amazon, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty bucket, named by the Variable."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    client.create_bucket(name)
    monkeypatch.setenv("AIRFLOW_VAR_ARTIFACTS_BUCKET", f"{client.scheme}://{name}")
    return buckets.bucket()


def test_a_written_object_is_read_by_others_with_its_generation(bucket: Bucket, client: Google | Amazon):
    generation = bucket.write("a/b.json", b'{"a": 1}', "application/json")
    assert client.read(bucket.name, "a/b.json") == (b'{"a": 1}', "application/json")
    assert bucket.read("a/b.json") == (b'{"a": 1}', generation)
    assert bucket.list()[0].generation == generation < 2**63
    assert bucket.address("a/b.json") == f"{client.scheme}://{bucket.name}/a/b.json"


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
    if bucket.scheme == "s3":
        pytest.skip("S3Proxy checks a condition before it takes the content, so writes of one moment may both pass")

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


def test_a_write_whose_response_was_lost_counts_as_written(bucket: Bucket):
    repeat_each_request(bucket)
    generation = bucket.write("once", b"mine", if_generation_match=ABSENT)
    assert bucket.read("once") == (b"mine", generation)


def test_objects_are_listed_by_prefix_and_deleted_once_or_twice(bucket: Bucket, client: Google | Amazon):
    for path in ("models/b/2", "models/b/1", "models/c", "reports/x"):
        bucket.write(path, path.encode())
    found = bucket.list("models/b/")
    assert [(entry.path, entry.size) for entry in found] == [("models/b/1", 10), ("models/b/2", 10)]
    assert found[0].generation == bucket.read("models/b/1")[1]
    bucket.delete("models/b/1")
    bucket.delete("models/b/1")
    assert client.list(bucket.name) == ["models/b/2", "models/c", "reports/x"]


def test_a_deletion_with_a_condition_leaves_newer_content(bucket: Bucket):
    first = bucket.write("x", b"1")
    second = bucket.write("x", b"2")
    with pytest.raises(GenerationChanged):
        bucket.delete("x", if_generation_match=first)
    assert bucket.read("x") == (b"2", second)
    bucket.delete("x", if_generation_match=second)
    bucket.delete("x", if_generation_match=second)
    assert bucket.list() == []


def test_a_move_takes_exactly_one_generation_and_can_be_repeated(bucket: Bucket, client: Google | Amazon):
    first = bucket.write("in/x.csv", b"1", "text/csv")
    for _ in range(2):
        assert bucket.move("in/x.csv", first, "done/1/x.csv")
    assert client.list(bucket.name) == ["done/1/x.csv"]
    assert client.read(bucket.name, "done/1/x.csv") == (b"1", "text/csv")
    second = bucket.write("in/x.csv", b"2")
    assert bucket.move("in/x.csv", first, "done/1/x.csv"), "killed between copy and deletion"
    assert bucket.read("in/x.csv") == (b"2", second), "the newer one stays"
    assert not bucket.move("in/x.csv", first, "done/other")
    assert client.list(bucket.name) == ["done/1/x.csv", "in/x.csv"]


def test_a_store_that_honors_conditions_is_proved_and_left_as_it_was(bucket: Bucket, client: Google | Amazon):
    bucket.prove_conditions()
    assert client.list(bucket.name) == []


def test_a_store_that_ignores_conditions_is_refused(bucket: Bucket, client: Google | Amazon):
    ignore_conditions(bucket)
    with pytest.raises(UnsafeStore, match=r"ignores the conditions of a write .* use a store"):
        bucket.prove_conditions()
    assert client.list(bucket.name) == []


def test_a_store_of_s3s_protocol_is_proved_before_its_first_conditional_write(s3_services, monkeypatch):
    name = f"test-{uuid.uuid4().hex[:8]}"
    client = Amazon(json.loads(s3_services.environment()["AIRFLOW_CONN_AWS_DEFAULT"]))
    client.create_bucket(name)
    unproved = buckets.bucket(f"s3://{name}")
    ignore_conditions(unproved)
    with pytest.raises(UnsafeStore):
        unproved.write("champion.json", b"{}", if_generation_match=ABSENT)
    assert client.list(name) == []


def test_a_missing_bucket_is_an_error_and_not_a_missing_object(client: Google | Amazon):
    missing = buckets.bucket(f"{client.scheme}://no-such-bucket")
    for call in (
        lambda: missing.read("a"),
        lambda: missing.write("a", b"a"),
        lambda: missing.list(),
        lambda: missing.delete("a", if_generation_match=1),
        lambda: missing.write("a", b"a", if_generation_match=ABSENT),
        lambda: missing.move("a", 1, "b"),
    ):
        with pytest.raises(BucketError, match="bucket no-such-bucket does not exist"):
            call()


def test_a_refused_key_names_the_connection(s3_services, monkeypatch: pytest.MonkeyPatch):
    connection = json.loads(s3_services.environment()["AIRFLOW_CONN_AWS_DEFAULT"])
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", json.dumps({**connection, "password": "wrong"}))
    refused = buckets.bucket("s3://artifacts", "other")
    with pytest.raises(BucketError, match=r"artifacts: connection other lacks permission \(SignatureDoesNotMatch\)"):
        refused.read("a")
    monkeypatch.delenv("AIRFLOW_CONN_OTHER")
    with pytest.raises(AirflowNotFoundException, match="other"):
        buckets.bucket("s3://artifacts", "other")


def repeat_each_request(bucket: Any) -> None:
    """Let the client send each write twice, as it does when the first response is lost."""
    if isinstance(bucket, AmazonBucket):
        put = bucket._client.put_object

        def twice(**arguments: Any) -> Any:
            put(**arguments)
            return put(**arguments)

        bucket._client.put_object = twice
    else:
        blob = bucket._remote.blob

        def blob_of(*arguments: Any, **options: Any) -> Any:
            made = blob(*arguments, **options)
            upload = made.upload_from_string

            def twice(*args: Any, **kwargs: Any) -> None:
                upload(*args, **kwargs)
                upload(*args, **kwargs)

            made.upload_from_string = twice
            return made

        bucket._remote.blob = blob_of


def ignore_conditions(bucket: Any) -> None:
    """Remove the conditions from the client's requests: the store behaves as one that ignores them."""
    if isinstance(bucket, AmazonBucket):
        put = bucket._client.put_object
        bucket._client.put_object = lambda IfMatch=None, IfNoneMatch=None, **arguments: put(**arguments)
    else:
        blob = bucket._remote.blob

        def blob_of(*arguments: Any, **options: Any) -> Any:
            made = blob(*arguments, **options)
            upload = made.upload_from_string
            made.upload_from_string = lambda *args, if_generation_match=None, **kwargs: upload(*args, **kwargs)
            return made

        bucket._remote.blob = blob_of


def test_the_bucket_is_named_artifacts_unless_the_variable_names_another(object_store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("AIRFLOW_VAR_ARTIFACTS_BUCKET", raising=False)
    assert buckets.bucket().name == "artifacts"
    monkeypatch.setenv("AIRFLOW_VAR_ARTIFACTS_BUCKET", "elsewhere")
    assert buckets.bucket().name == "elsewhere"
