"""The schema registry behind an Airflow connection. Every answer that is not definite is `RegistryUnavailable`.

The connection: the host is the registry's address ("https://registry.example.com/apis/ccompat/v7"), login and password
are used for basic authentication. The extra holds settings of confluent-kafka's `SchemaRegistryClient`, such as
"bearer.auth.token" or "ssl.ca.location".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from include.streams.formats.errors import RegistryUnavailable, SchemaRefused

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

TIMEOUT_SECONDS = 10.0
# After a request without an answer, further requests of this process fail at once for this long: a task with many
# ranges must not wait for each of them.
AWAY_SECONDS = 5.0
# A definite answer: the schema or the subject does not exist, the schema is not compatible, the schema is not valid.
_NOT_FOUND = {40401, 40402, 40403}
_REFUSED = {409, 422}


class SchemaText(NamedTuple):
    """A schema as the registry holds it.

    Attributes:
        kind: "AVRO", "PROTOBUF" or "JSON".
        text: The schema in its own language. Of Protobuf perhaps a file descriptor in base64, as some serializers
            register it.
        references: The schemas that the text names: {name in the text: schema}, those that others need first.
    """

    kind: str
    text: str
    references: tuple[tuple[str, SchemaText], ...] = ()


class Registered(NamedTuple):
    """The id of a schema under a subject; `guid` is None if the registry has no such ids."""

    id: int
    guid: str | None


@cache
def registry(conn_id: str) -> SchemaRegistry:
    """The registry of a connection, one object for each process.

    Args:
        conn_id: The Airflow connection.

    Raises:
        RegistryUnavailable: The connection is not defined, or its settings are refused by the client.
    """
    return SchemaRegistry(conn_id)


class SchemaRegistry:
    """A client of one registry. Schemas are cached by id for the lifetime of the process: an id never changes.

    Args:
        conn_id: The Airflow connection.
    """

    def __init__(self, conn_id: str) -> None:
        from confluent_kafka.schema_registry import SchemaRegistryClient

        self.conn_id = conn_id
        settings = settings_of(conn_id)
        self._address = _without_password(settings["url"])
        try:
            self._client: SchemaRegistryClient = SchemaRegistryClient(settings)
        except Exception as error:
            raise RegistryUnavailable(
                f"connection {conn_id}: the client of the schema registry refuses its settings "
                f"({type(error).__name__}: {error}); see docs/formats.md"
            ) from None
        self._away_until = 0.0
        self._last_error = ""

    def schema_by_id(self, schema_id: int) -> SchemaText | None:
        """The schema of an id; None if the registry does not know the id."""
        return self._text_of(self._ask(self._client.get_schema, schema_id))

    def schema_by_guid(self, guid: str) -> SchemaText | None:
        """The schema of a globally unique id; None if the registry does not know it."""
        return self._text_of(self._ask(self._client.get_schema_by_guid, guid))

    def subjects_of(self, schema_id: int) -> frozenset[str]:
        """The subjects under which the schema of an id is registered."""
        return frozenset(self._ask(self._client.get_subjects_by_schema_id, schema_id) or ())

    def latest(self, subject: str) -> tuple[Registered, SchemaText] | None:
        """The latest schema of a subject; None if the subject has none."""
        found = self._ask(self._client.get_latest_version, subject)
        text = self._text_of(found and found.schema)
        return None if text is None else (Registered(found.schema_id, found.guid), text)

    def look_up(self, subject: str, schema: SchemaText) -> Registered | None:
        """The id of exactly this schema under a subject; None if it is not registered there."""
        found = self._ask(self._client.lookup_schema, subject, _request(schema))
        return None if found is None else Registered(found.schema_id, found.guid)

    def register(self, subject: str, schema: SchemaText) -> Registered:
        """Register a schema; it can be repeated.

        Raises:
            SchemaRefused: It is not compatible with an earlier schema of the subject, or not valid.
        """
        made = self._ask(self._client.register_schema_full_response, subject, _request(schema), may_refuse=True)
        return Registered(made.schema_id, made.guid)

    def level_of(self, subject: str) -> str | None:
        """The compatibility level that is set for a subject; None if the registry's own applies."""
        return self._ask(self._client.get_compatibility, subject)

    def set_level(self, subject: str, level: str) -> None:
        """Set the compatibility level of a subject."""
        self._ask(self._client.set_compatibility, subject, level)

    def _text_of(self, schema: Schema | None) -> SchemaText | None:
        if schema is None or schema.schema_str is None:
            return None
        references: list[tuple[str, SchemaText]] = []
        for each in schema.references or ():
            found = self._ask(self._client.get_version, each.subject, each.version)
            text = self._text_of(found and found.schema)
            if text is None:
                raise RegistryUnavailable(
                    f"connection {self.conn_id}: a schema names version {each.version} of subject {each.subject}, "
                    "which the registry does not have"
                )
            references.append((str(each.name), text))
        return SchemaText(schema.schema_type or "AVRO", schema.schema_str, tuple(references))

    def _ask(self, request: Callable[..., Any], *arguments: Any, may_refuse: bool = False) -> Any:
        """The answer; None if it is that the subject or the schema does not exist."""
        from confluent_kafka.schema_registry.error import SchemaRegistryError

        if time.monotonic() < self._away_until:
            raise RegistryUnavailable(self._last_error)
        try:
            return request(*arguments)
        except SchemaRegistryError as error:
            if error.http_status_code == 404 and _number(error.error_code) in _NOT_FOUND:
                return None
            if may_refuse and error.http_status_code in _REFUSED:
                raise SchemaRefused(str(error.error_message)) from None
            reason = f"HTTP {error.http_status_code}"
            if error.http_status_code in (401, 403):
                reason += ": correct login and password, or the token"
            elif error.http_status_code == 404:
                reason += ": no registry answers there; the address must end with the path of Confluent's API"
            raise self._unavailable(reason) from None
        except Exception as error:
            # Timeouts, refused connections, certificates, answers that are no JSON.
            raise self._unavailable(type(error).__name__) from error

    def _unavailable(self, reason: str) -> RegistryUnavailable:
        self._away_until = time.monotonic() + AWAY_SECONDS
        self._last_error = (
            f"the schema registry gives no answer (connection {self.conn_id}, {self._address}: {reason}); messages "
            "that need it wait, and the task is retried"
        )
        return RegistryUnavailable(self._last_error)


def settings_of(conn_id: str) -> dict[str, Any]:
    """The settings of confluent-kafka's client in an Airflow connection.

    Args:
        conn_id: The connection.

    Raises:
        RegistryUnavailable: The connection is not defined, could not be looked up, or has no address.
    """
    from airflow.sdk import BaseHook

    from include.streams.compat.connections import LookUpFailed, is_defined

    try:
        is_there = is_defined(conn_id)
    except LookUpFailed as error:
        raise RegistryUnavailable(str(error)) from None
    if not is_there:
        raise RegistryUnavailable(
            f"the Airflow connection {conn_id} is not defined: topics in Avro, Protobuf or JSON Schema need it, with "
            "the address of the schema registry as its host (docs/formats.md)"
        )
    connection = BaseHook.get_connection(conn_id)
    extra = {name: value for name, value in (connection.extra_dejson or {}).items() if "." in name or name == "url"}
    address = extra.pop("url", None) or connection.host or ""
    if address and "://" not in address:
        scheme = connection.schema or ("http" if connection.conn_type == "http" else "https")
        host, slash, path = address.partition("/")
        address = f"{scheme}://{host}{f':{connection.port}' if connection.port else ''}{slash}{path}"
    if not address:
        raise RegistryUnavailable(f"connection {conn_id} has no host: set it to the address of the schema registry")
    settings: dict[str, Any] = {
        "url": address,
        "timeout": TIMEOUT_SECONDS,
        "max.retries": 1,
        "cache.latest.ttl.sec": 60,
        "retries.wait.ms": 200,
        **extra,
    }
    if connection.login:
        settings["basic.auth.user.info"] = f"{connection.login}:{connection.password or ''}"
    if "bearer.auth.token" in extra:
        settings.setdefault("bearer.auth.credentials.source", "STATIC_TOKEN")
        # A header that only Confluent Cloud reads; the client requires it.
        settings.setdefault("bearer.auth.logical.cluster", "none")
    return settings


def _request(schema: SchemaText) -> Schema:
    from confluent_kafka.schema_registry import Schema

    return Schema(schema.text, schema.kind)


def _number(code: Any) -> int:
    try:
        return int(code)
    except (TypeError, ValueError):
        return -1


def _without_password(address: str) -> str:
    parts = urlsplit(address.split(",")[0])
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
