"""Amazon S3 and stores that speak its protocol, through the Airflow connection `aws_default`.

The connection sets how to authenticate (a key, a role, web identity, the machine's own account), and in its extra the
region (`region_name`), the address of another server than Amazon's (`endpoint_url`) and botocore's settings
(`config_kwargs`).
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

from include.streams.lake.store import (
    ABSENT,
    WRITE_ID,
    Bucket,
    BucketError,
    Entry,
    Store,
    StoreUnavailable,
)

if TYPE_CHECKING:
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    from botocore.exceptions import ClientError

CONNECT_SECONDS, READ_SECONDS = 10, 60
# With botocore's pauses between them, about a minute for a server that refuses connections.
TRIES = 9
# A store answers so while another conditional write of the object is in progress.
CONFLICT = 409
CONFLICT_TRIES, CONFLICT_PAUSE_SECONDS = 5, 0.2
# References that Kafka Connect's worker resolves, as in `landing.connectors`: no configuration contains a key.
ACCESS_KEY, SECRET_KEY = "${env:LANDING_S3_ACCESS_KEY}", "${env:LANDING_S3_SECRET_KEY}"
# (endpoint, bucket) for which this process has proved that the store honors conditions.
_proved: set[tuple[str, str]] = set()


class AmazonStore(Store):
    """Amazon S3, or another server that speaks its protocol."""

    title = "Amazon S3"
    schemes = ("s3", "s3a", "s3n")
    default_conn_id = "aws_default"

    def file_properties(self) -> dict[str, Any]:
        hook = self._hook()
        properties: dict[str, Any] = {
            # A session, not keys: it renews the keys of a role.
            "s3.session": hook.get_session(deferrable=True),
            "s3.config": client_settings(hook),
            "s3.anonymous": str(_is_anonymous(hook)),
        }
        if hook.region_name:
            properties["s3.region"] = hook.region_name
        if endpoint := _endpoint(hook):
            properties["s3.endpoint"] = endpoint
        return properties

    def sink_settings(self) -> dict[str, str]:
        """If the connection has a key, Connect's machine has it in two variables; otherwise it has its own account."""
        hook = self._hook()
        settings = {"io-impl": "org.apache.iceberg.aws.s3.S3FileIO"}
        if hook.region_name:
            settings["client.region"] = hook.region_name
        if endpoint := _endpoint(hook):
            settings["s3.endpoint"] = endpoint
        if client_settings(hook).get("s3", {}).get("addressing_style") == "path":
            settings["s3.path-style-access"] = "true"
        if hook.conn_config.aws_access_key_id and not hook.conn_config.role_arn:
            settings |= {"s3.access-key-id": ACCESS_KEY, "s3.secret-access-key": SECRET_KEY}
        return settings

    def bucket(self, name: str) -> Bucket:
        from botocore.config import Config

        hook = self._hook()
        client = hook.get_client_type(config=Config(**client_settings(hook)))
        return AmazonBucket(client, name, self.conn_id, _endpoint(hook))

    def _hook(self) -> S3Hook:
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        hook = S3Hook(aws_conn_id=self.conn_id)
        if not hook.conn_config:
            # The provider would silently use the machine's own account.
            from airflow.sdk.exceptions import AirflowNotFoundException

            raise AirflowNotFoundException(f"The conn_id `{self.conn_id}` isn't defined")
        return hook


def _endpoint(hook: S3Hook) -> str | None:
    """The address of a server that is not Amazon's."""
    return hook.conn_config.get_service_endpoint_url(service_name="s3")


def _is_anonymous(hook: S3Hook) -> bool:
    return hook.conn_config.extra_config.get("config_kwargs", {}).get("signature_version") == "unsigned"


def client_settings(hook: S3Hook) -> dict[str, Any]:
    """Botocore's settings: limits of time, those for a server that is not Amazon's, and those of the connection.

    Args:
        hook: A hook of the connection.
    """
    settings: dict[str, Any] = {
        "connect_timeout": CONNECT_SECONDS,
        "read_timeout": READ_SECONDS,
        "retries": {"mode": "standard", "total_max_attempts": TRIES},
    }
    if _endpoint(hook):
        settings |= {
            # By default, checksums follow the content in an encoding that many other servers refuse (501).
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            # Few of these servers have a host name for each bucket.
            "s3": {"addressing_style": "path"},
        }
    own = dict(hook.conn_config.extra_config.get("config_kwargs") or {})
    if own.get("signature_version") == "unsigned":
        from botocore import UNSIGNED

        own["signature_version"] = UNSIGNED
    return settings | own


class AmazonBucket(Bucket):
    """A bucket in S3.

    S3 has no generations. Here a generation consists of the second of the write and a part of the ETag. The conditions
    that the store checks are ETags.
    """

    scheme = "s3"

    def __init__(self, client: Any, name: str, conn_id: str, endpoint: str | None) -> None:
        super().__init__(name, conn_id)
        self._client = client
        self._endpoint = endpoint

    def read(self, path: str) -> tuple[bytes, int] | None:
        from botocore.exceptions import HTTPClientError, IncompleteReadError, ResponseStreamingError
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

        def once() -> tuple[bytes, int] | None:
            try:
                answer = self._client.get_object(Bucket=self.name, Key=path)
            except self._client.exceptions.NoSuchKey:
                return None
            with answer["Body"] as body:
                return body.read(), _generation(answer)

        # The client does not repeat a request whose content breaks off.
        broken = retry_if_exception_type((HTTPClientError, IncompleteReadError, ResponseStreamingError))
        with self._explaining():
            return Retrying(
                retry=broken, stop=stop_after_attempt(3), wait=wait_random_exponential(max=5), reraise=True
            )(once)

    def write(
        self,
        path: str,
        data: bytes,
        content_type: str = "application/octet-stream",
        *,
        if_generation_match: int | None = None,
    ) -> int:
        condition: dict[str, str] = {}
        with self._explaining():
            if if_generation_match is not None:
                self._require_conditions()
                condition = self._condition(path, if_generation_match)
            write_id = uuid.uuid4().hex
            try:
                etag = self._put(path, data, condition, ContentType=content_type, Metadata={WRITE_ID: write_id})
            except _Refused as refused:
                existing = self._head(path)
                if existing is not None and existing["Metadata"].get(WRITE_ID) == write_id:
                    # The client has repeated a write whose response was lost.
                    return _generation(existing)
                state = "does not exist" if existing is None else f"has generation {_generation(existing)}"
                raise self._changed(path, state, if_generation_match or ABSENT) from refused
            existing = self._head(path)
        if existing is None or existing["ETag"] != etag:
            # Another process has already replaced it. This number is the generation of no object.
            return _number(0, etag)
        return _generation(existing)

    def list(self, prefix: str = "") -> list[Entry]:
        with self._explaining():
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
            entries = [
                Entry(found["Key"], _generation(found), int(found["Size"]), found["LastModified"])
                for page in pages
                for found in page.get("Contents", ())
            ]
        return sorted(entries, key=lambda entry: entry.path)

    def delete(self, path: str, *, if_generation_match: int | None = None) -> None:
        with self._explaining():
            if if_generation_match is None:
                self._client.delete_object(Bucket=self.name, Key=path)
                return
            existing = self._head(path)
            if existing is None:
                return
            if _generation(existing) != if_generation_match:
                raise self._changed(path, f"has generation {_generation(existing)}", if_generation_match)
            try:
                self._delete_if(path, existing["ETag"])
            except _Refused as refused:
                raise self._changed(path, "has another generation", if_generation_match) from refused

    def _delete_if(self, path: str, etag: str) -> None:
        from botocore.exceptions import ClientError

        try:
            self._client.delete_object(Bucket=self.name, Key=path, IfMatch=etag)
        except ClientError as error:
            if _status(error) == 404:
                return
            if _status(error) != 501:
                raise _refused(error) from error
            # The store has no conditions for deletions.
            self._client.delete_object(Bucket=self.name, Key=path)

    def prove_conditions(self) -> None:
        path = f"probes/{uuid.uuid4().hex}"
        with self._explaining():
            try:
                # Refused only if the client repeats it because the first response was lost.
                with suppress(_Refused):
                    self._put(path, b"first", {"IfNoneMatch": "*"})
                # The ETag of no content.
                for condition in ({"IfNoneMatch": "*"}, {"IfMatch": '"d41d8cd98f00b204e9800998ecf8427e"'}):
                    with suppress(_Refused):
                        self._put(path, b"second", condition)
                        raise self._unsafe()
            finally:
                self._client.delete_object(Bucket=self.name, Key=path)
        _proved.add((self._endpoint or "", self.name))

    def _require_conditions(self) -> None:
        """Prove once per process that a store that is not Amazon's honors conditions."""
        if self._endpoint and (self._endpoint, self.name) not in _proved:
            self.prove_conditions()

    def _condition(self, path: str, generation: int) -> dict[str, str]:
        """The condition that the object still has this generation."""
        if generation == ABSENT:
            return {"IfNoneMatch": "*"}
        existing = self._head(path)
        if existing is None:
            raise self._changed(path, "does not exist", generation)
        if _generation(existing) != generation:
            raise self._changed(path, f"has generation {_generation(existing)}", generation)
        return {"IfMatch": existing["ETag"]}

    def _put(self, path: str, data: bytes, condition: dict[str, str], **options: Any) -> str:
        """Write an object; returns its ETag. Raises _Refused if the condition does not hold."""
        from botocore.exceptions import ClientError

        for left in reversed(range(CONFLICT_TRIES)):
            try:
                answer = self._client.put_object(Bucket=self.name, Key=path, Body=data, **condition, **options)
                return str(answer["ETag"])
            except ClientError as error:
                if _status(error) == CONFLICT and left:
                    time.sleep(CONFLICT_PAUSE_SECONDS)
                    continue
                if condition and _code(error) in ("NotImplemented", "InvalidArgument"):
                    raise self._unsafe() from error
                raise _refused(error) from error
        raise AssertionError("unreachable")

    def _copy(self, path: str, generation: int, to: str) -> bool:
        from boto3.s3.transfer import TransferConfig
        from botocore.exceptions import ClientError

        with self._explaining():
            existing = self._head(path)
            if existing is None or _generation(existing) != generation:
                return self._has(to)
            try:
                # Objects of more than 5 GB are copied in parts.
                self._client.copy(
                    {"Bucket": self.name, "Key": path},
                    self.name,
                    to,
                    ExtraArgs={"CopySourceIfMatch": existing["ETag"]},
                    Config=TransferConfig(use_threads=False),
                )
            except ClientError as error:
                if _status(error) in (404, 412):
                    return self._has(to)
                raise
        return True

    def _has(self, path: str) -> bool:
        with self._explaining():
            return self._head(path) is not None

    def _head(self, path: str) -> dict[str, Any] | None:
        from botocore.exceptions import ClientError

        try:
            return self._client.head_object(Bucket=self.name, Key=path)
        except ClientError as error:
            if _status(error) != 404:
                raise
            # The answer has no content, and does not say whether the bucket is missing.
            self._client.list_objects_v2(Bucket=self.name, MaxKeys=1)
            return None

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Replace the client's errors by errors that name the bucket and the remedy."""
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

        try:
            yield
        except NoCredentialsError as error:
            raise self._denied(str(error), "give the connection a key or a role") from error
        except ClientError as error:
            if _code(error) == "NoSuchBucket":
                raise self._missing() from error
            if _status(error) in (401, 403):
                raise self._denied(_code(error), "give it the rights in docs/deployment.md") from error
            raise StoreUnavailable(f"bucket {self.name}: {error}") from error
        except BotoCoreError as error:
            raise StoreUnavailable(f"bucket {self.name}: {error}") from error


class _Refused(Exception):
    """The condition of a request does not hold."""


def _refused(error: ClientError) -> Exception:
    """_Refused if the store says that the condition does not hold; otherwise the error itself."""
    is_refusal = _status(error) in (412, CONFLICT) or _code(error) == "NoSuchKey"
    return _Refused(str(error)) if is_refusal else error


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _generation(answer: dict[str, Any]) -> int:
    modified: datetime = answer["LastModified"]
    if not (etag := answer.get("ETag")):
        raise BucketError("the store returns no ETag of an object, so replacing the object would not be safe")
    return _number(int(modified.timestamp()), etag)


def _number(seconds: int, etag: str) -> int:
    """A number below 2**63 from the second of a write (until the year 2106) and 31 bits of the ETag's hash.

    A listing gives the time with milliseconds, and other answers without; an ETag has quotes in every answer.
    """
    part = int.from_bytes(hashlib.sha256(etag.strip('"').encode()).digest()[:4]) >> 1
    return (seconds << 31) | part
