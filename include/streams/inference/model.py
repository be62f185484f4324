"""The model's endpoint: any server with OpenAI's Chat Completions API, from one Airflow connection.

The SDK sends the requests and raises their errors. Its retries are off: `ModelSettings` limits the retries of a whole
proposal. This module validates the answers, because an endpoint can answer anything and the SDK does not check it.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

if TYPE_CHECKING:
    import openai

CONN_ID = "llm"
CONNECT_SECONDS = 5.0
# An answer of a few hundred tokens has a few kB. An endless answer must not fill the worker's memory.
MAX_ANSWER_BYTES = 512 * 1024


class ModelFailed(Exception):
    """The endpoint gave no usable answer.

    Attributes:
        reason: A short text that contains no part of the answer.
        retriable: The same request may succeed at once or a little later.
        retry_after_seconds: The delay that the endpoint asks for; 0 without one.
    """

    def __init__(self, reason: str, *, retriable: bool = False, retry_after_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retriable = retriable
        self.retry_after_seconds = retry_after_seconds


class Misconfigured(ModelFailed):
    """The connection is defined, but its settings cannot be used."""


class ModelSettings(BaseModel):
    """The extra of the connection: the model and its limits.

    Unknown names are refused, because a misspelled limit would have no effect.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str, Field(min_length=1, max_length=200)]
    # Limits of one proposal, with all of its requests.
    max_requests: Annotated[int, Field(ge=1, le=50)] = 6
    max_tool_calls: Annotated[int, Field(ge=0, le=100)] = 8
    max_tokens: Annotated[int, Field(ge=100, le=1_000_000)] = 30_000
    max_seconds: Annotated[float, Field(gt=0, le=600)] = 60.0
    # The limit of one request.
    request_seconds: Annotated[float, Field(gt=0, le=600)] = 30.0
    # Retries after 408, 409, 429, 5xx or a broken connection, for the whole proposal, not for each request.
    max_retries: Annotated[int, Field(ge=0, le=5)] = 1
    # Sent unchanged with each request. Servers differ: some know only max_tokens, some refuse a temperature.
    parameters: dict[str, Any] = {"max_completion_tokens": 1_500}


class _Function(BaseModel):
    name: str
    arguments: str


class ToolCall(BaseModel):
    id: Annotated[str, Field(max_length=200)]
    function: _Function


class _Reply(BaseModel):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None


class _Choice(BaseModel):
    finish_reason: str | None = None
    message: _Reply


class _Usage(BaseModel):
    prompt_tokens: Annotated[int, Field(ge=0)]
    completion_tokens: Annotated[int, Field(ge=0)]


class Answer(BaseModel):
    """The fields of an answer that are read. Other fields are ignored, because servers add their own."""

    model: Annotated[str, Field(max_length=200)] | None = None
    choices: Annotated[list[_Choice], Field(min_length=1)]
    usage: _Usage | None = None

    @property
    def reply(self) -> _Reply:
        return self.choices[0].message

    @property
    def finish_reason(self) -> str | None:
        return self.choices[0].finish_reason


@dataclass(frozen=True)
class ChatModel:
    """A model at an endpoint.

    Attributes:
        base_url: The SDK's `base_url`, which ends with /v1.
        api_key: The key; empty for none.
        settings: The model and its limits.
    """

    base_url: str
    api_key: str
    settings: ModelSettings

    def open(self) -> openai.OpenAI:
        """Create a client, which the caller must close. The import of the SDK takes half a second in each process."""
        import httpx
        import openai

        # No redirects: the request contains text of a customer, and would go to a host that nobody has configured.
        transport = httpx.Client(follow_redirects=False, timeout=httpx.Timeout(self.settings.request_seconds))
        # A key must be passed, or the SDK would send the key in OPENAI_API_KEY to this host.
        return openai.OpenAI(
            base_url=self.base_url, api_key=self.api_key or "none", max_retries=0, http_client=transport
        )

    def complete(self, client: openai.OpenAI, messages: list[Any], tools: list[Any], *, deadline: float) -> Answer:
        """Send one request.

        Args:
            client: A client from `open`.
            messages: The messages in the form of the API.
            tools: The tools in the form of the API.
            deadline: A time of `time.monotonic`; request_seconds limits the request too.

        Raises:
            ModelFailed: There is no usable answer in time.
        """
        import httpx
        import openai

        end = min(deadline, time.monotonic() + self.settings.request_seconds)
        if (left := end - time.monotonic()) <= 0:
            raise ModelFailed("time limit")
        try:
            # Read piece by piece: the client's timeout applies between two bytes, so a server that sends one byte per
            # second would never exceed it.
            with client.chat.completions.with_streaming_response.create(
                model=self.settings.model,
                messages=messages,
                tools=tools,
                timeout=httpx.Timeout(left, connect=min(left, CONNECT_SECONDS)),
                extra_body=self.settings.parameters,
            ) as response:
                body = bytearray()
                for piece in response.iter_bytes():
                    body += piece
                    if len(body) > MAX_ANSWER_BYTES:
                        raise ModelFailed("answer too large")
                    if time.monotonic() > end:
                        raise ModelFailed("timeout")
                if response.status_code != 200:  # the SDK raises no error for a redirect
                    raise ModelFailed(f"HTTP {response.status_code}")
        except (openai.APITimeoutError, httpx.TimeoutException):
            raise ModelFailed("timeout") from None
        except openai.APIStatusError as error:
            status = error.status_code
            raise ModelFailed(
                f"HTTP {status}",
                retriable=status in (408, 409, 429) or status >= 500,
                retry_after_seconds=_seconds(error.response.headers.get("retry-after")),
            ) from None
        except (openai.APIConnectionError, httpx.HTTPError):
            raise ModelFailed("connection failed", retriable=True) from None
        except openai.OpenAIError as error:
            raise ModelFailed(type(error).__name__) from None
        try:
            return Answer.model_validate_json(bytes(body))
        except ValidationError:
            raise ModelFailed("answer is not a chat completion") from None


def from_connection(conn_id: str = CONN_ID) -> ChatModel | None:
    """The model of an Airflow connection.

    The connection has the type http, the base URL as host (https://host/v1), the key as password, and the fields of
    ModelSettings as extra: {"model": "...", ...}.

    Args:
        conn_id: The Airflow connection.

    Returns:
        The model; None if the connection is not defined or has no host.

    Raises:
        Misconfigured: The settings cannot be used.
        LookUpFailed: Airflow could not look up whether the connection is defined. The task should be retried, not
            continued without a model.
    """
    from airflow.sdk import BaseHook

    from include.streams.compat.connections import is_defined

    if not is_defined(conn_id):
        return None
    connection = BaseHook.get_connection(conn_id)
    if not connection.host:
        return None
    try:
        extra = json.loads(connection.extra or "{}")
        settings = ModelSettings.model_validate(extra)
    except ValidationError as error:
        places = sorted({".".join(map(str, problem["loc"])) for problem in error.errors()})
        raise Misconfigured(f"connection {conn_id}: extra has wrong or missing fields: {', '.join(places)}") from None
    except ValueError:
        raise Misconfigured(f"connection {conn_id}: extra is not JSON") from None
    if reserved := sorted({"messages", "model", "stream", "tools", "n"} & set(settings.parameters)):
        raise Misconfigured(f"connection {conn_id}: parameters may not hold {', '.join(reserved)}")
    base_url = connection.host
    if "://" not in base_url:
        port = f":{connection.port}" if connection.port else ""
        base_url = f"{connection.schema or 'https'}://{base_url}{port}"
    if not base_url.startswith(("https://", "http://")):
        raise Misconfigured(f"connection {conn_id}: host is not an http(s) URL; use https://host/v1")
    return ChatModel(base_url, connection.password or "", settings)


def _seconds(text: str | None) -> float:
    try:
        return min(max(float(text or 0), 0.0), 3600.0)
    except ValueError:
        return 0.0
