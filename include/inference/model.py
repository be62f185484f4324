"""The model's endpoint: any that speaks OpenAI's Chat Completions, from one Airflow connection.

The SDK sends the request and says what went wrong; its retries are off (see `agent.Limits`), and what it returns is
read here: an endpoint can answer anything, and the SDK passes that on unchecked.
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
# An answer of a few hundred tokens has a few kB; one without an end must not fill the worker's memory.
MAX_ANSWER_BYTES = 512 * 1024


class ModelFailed(Exception):
    """The endpoint gave no answer that can be used; `reason` is short and holds nothing that it sent.

    `retriable`: the same request may succeed at once or a little later, after `retry_after_seconds` if it says so.
    """

    def __init__(self, reason: str, *, retriable: bool = False, retry_after_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retriable = retriable
        self.retry_after_seconds = retry_after_seconds


class Misconfigured(ModelFailed):
    """The connection is defined, and cannot be used as it is."""


class ModelSettings(BaseModel):
    """The extra of the connection: which model, and what it may cost. Unknown names are refused: a limit that is
    misspelt would be none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str, Field(min_length=1, max_length=200)]
    # Of one proposal, whatever the number of requests it takes.
    max_requests: Annotated[int, Field(ge=1, le=50)] = 6
    max_tool_calls: Annotated[int, Field(ge=0, le=100)] = 8
    max_tokens: Annotated[int, Field(ge=100, le=1_000_000)] = 30_000
    max_seconds: Annotated[float, Field(gt=0, le=600)] = 60.0
    # Of one request.
    request_seconds: Annotated[float, Field(gt=0, le=600)] = 30.0
    # Requests that are sent again after 429, 5xx or a broken connection: of the whole proposal, not of each request.
    max_retries: Annotated[int, Field(ge=0, le=5)] = 1
    # Sent as they are with each request. Servers differ: some know only max_tokens, some refuse a temperature.
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
    """What is read of an answer; the rest is ignored, since servers add to it."""

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
    """A model behind an endpoint. `base_url` is what the SDK calls so: .../v1"""

    base_url: str
    api_key: str
    settings: ModelSettings

    def open(self) -> openai.OpenAI:
        """A client to be closed by the caller. Imports the SDK: half a second of a process's first call."""
        import httpx
        import openai

        # No redirects: the request, with what a customer wrote, would follow to a host that nobody has configured.
        transport = httpx.Client(follow_redirects=False, timeout=httpx.Timeout(self.settings.request_seconds))
        # A key must be given, or the SDK would send the one of OPENAI_API_KEY to whatever host this is.
        return openai.OpenAI(
            base_url=self.base_url, api_key=self.api_key or "none", max_retries=0, http_client=transport
        )

    def complete(self, client: openai.OpenAI, messages: list[Any], tools: list[Any], *, deadline: float) -> Answer:
        """One request. `deadline` is a time of time.monotonic(). Raises ModelFailed."""
        import httpx
        import openai

        end = min(deadline, time.monotonic() + self.settings.request_seconds)
        if (left := end - time.monotonic()) <= 0:
            raise ModelFailed("time limit")
        try:
            # Read piece by piece: the client's timeout is one between two bytes, and a server that sends one byte a
            # second would never reach it.
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
                if response.status_code != 200:  # a redirect is none of the SDK's errors
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
            raise ModelFailed("answer is no chat completion") from None


def from_connection(conn_id: str = CONN_ID) -> ChatModel | None:
    """The model of an Airflow connection, or None when there is none (no such connection, or one without a host).

    The connection: type http, host = base URL (https://host/v1), password = key, extra = {"model": "...", ...} with
    the limits of ModelSettings. Raises Misconfigured.
    """
    from airflow.sdk import BaseHook
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        connection = BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        return None
    if not connection.host:
        return None
    try:
        extra = json.loads(connection.extra or "{}")
        settings = ModelSettings.model_validate(extra)
    except ValidationError as error:
        places = sorted({".".join(map(str, problem["loc"])) for problem in error.errors()})
        raise Misconfigured(f"connection {conn_id}: extra is wrong or lacks: {', '.join(places)}") from None
    except ValueError:
        raise Misconfigured(f"connection {conn_id}: extra is no JSON") from None
    if reserved := sorted({"messages", "model", "stream", "tools", "n"} & set(settings.parameters)):
        raise Misconfigured(f"connection {conn_id}: parameters may not hold {', '.join(reserved)}")
    base_url = connection.host
    if "://" not in base_url:
        port = f":{connection.port}" if connection.port else ""
        base_url = f"{connection.schema or 'https'}://{base_url}{port}"
    if not base_url.startswith(("https://", "http://")):
        raise Misconfigured(f"connection {conn_id}: host is no http(s) URL; use https://host/v1")
    return ChatModel(base_url, connection.password or "", settings)


def _seconds(text: str | None) -> float:
    try:
        return min(max(float(text or 0), 0.0), 3600.0)
    except ValueError:
        return 0.0
