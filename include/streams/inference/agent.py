"""An agent that reads data and proposes: a loop over Chat Completions with read-only tools, limits and checks.

The model chooses among the given tools. It answers through one more tool, `submit`, whose arguments are the output.
Everything that the model returns is checked: names of tools against the list, arguments and output by pydantic,
evidence against the ids that tools have returned, and the rest by the caller's `check`. An output that fails a check is
returned to the model once for correction. An agent has no side effects, so a run that is killed can be repeated.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from include.streams.inference.model import Answer, ChatModel, ModelFailed, ToolCall
from include.streams.inference.redaction import clean, redact

log = logging.getLogger(__name__)

SUBMIT = "submit"
# Limited, because every further request of the loop contains the results of all tool calls.
MAX_RESULT_CHARS = 4_000
MAX_RETRY_WAIT_SECONDS = 3.0
# The longest text argument in the trace.
MAX_KEPT_CHARS = 300

Output = TypeVar("Output", bound=BaseModel)


class Refused(Exception):
    """Raised by a caller's check if a well-formed output is not allowed. The text is returned to the model."""


@dataclass(frozen=True)
class Found:
    """The result of a tool.

    Attributes:
        content: A value that can be written as JSON.
        ids: The ids in it that the output may use as evidence.
    """

    content: Any
    ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tool:
    """A read-only function that the model may call.

    Attributes:
        name: The tool's name for the model.
        description: The tool's description for the model.
        arguments: The pydantic model of the arguments.
        call: The function. It gets an instance of `arguments`.
    """

    name: str
    description: str
    arguments: type[BaseModel]
    call: Callable[[Any], Found]

    def schema(self) -> dict[str, Any]:
        return _schema(self.name, self.description, self.arguments)


@dataclass
class Trace:
    """The record of a run, also of a failed one.

    Attributes:
        model_answered: The model's name in the latest answer.
        tool_calls: {"name", "arguments", "ids"} for each call, and "error" for a failed one.
        requests: The number of requests to the model.
        input_tokens: The sum over all answers.
        output_tokens: The sum over all answers.
    """

    model_answered: str | None = None
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def usage(self) -> dict[str, int]:
        return {
            "requests": self.requests,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
        }


@dataclass(frozen=True)
class Task(Generic[Output]):
    """The task of an agent.

    Attributes:
        system: The system message.
        user: The user message.
        tools: The tools that the model may call.
        output: The pydantic model of the output.
        evidence: Returns the ids that an output names as its evidence.
        check: Raises Refused for an output that is not allowed.
    """

    system: str
    user: str
    tools: Sequence[Tool]
    output: type[Output]
    evidence: Callable[[Output], Sequence[str]] = lambda output: ()
    check: Callable[[Output], None] = lambda output: None


def run(model: ChatModel, task: Task[Output], trace: Trace) -> Output:
    """Run an agent.

    Args:
        model: The model with its limits.
        task: The task.
        trace: An empty trace. It is filled during the run, so that it is also available after a failed run.

    Returns:
        The checked output.

    Raises:
        ModelFailed: There is no valid output within the model's limits; the text is a short reason.
    """
    client = model.open()
    try:
        return _Loop(model, task, trace).run(client)
    finally:
        client.close()


class _Loop(Generic[Output]):
    def __init__(self, model: ChatModel, task: Task[Output], trace: Trace) -> None:
        self.model = model
        self.limits = model.settings
        self.task = task
        self.trace = trace
        self.tools = {tool.name: tool for tool in task.tools}
        self.schemas = [
            *(tool.schema() for tool in task.tools),
            _schema(SUBMIT, "Give your answer. Call it once, at the end.", task.output),
        ]
        self.deadline = time.monotonic() + self.limits.max_seconds
        self.retries_left = self.limits.max_retries
        # A wrong output is returned to the model once.
        self.corrections_left = 1
        self.returned_ids: set[str] = set()
        self.messages: list[dict[str, Any]] = [
            {"role": "system", "content": task.system},
            {"role": "user", "content": task.user},
        ]

    def run(self, client: Any) -> Output:
        while True:
            answer = self._ask(client)
            reply = answer.reply
            if reply.refusal or answer.finish_reason == "content_filter":
                raise ModelFailed("the model refused")
            if answer.finish_reason == "length":
                raise ModelFailed("answer cut off")
            calls = reply.tool_calls or []
            if not calls:
                # Some models write the answer as text instead of calling `submit`.
                output = self._output(reply.content or "")
                if not isinstance(output, str):
                    return output
                self.messages.append({"role": "assistant", "content": reply.content or ""})
                self.messages.append({"role": "user", "content": f"{output} Call {SUBMIT}."})
                continue
            self.messages.append(_echo(reply.content, calls))
            for call in calls:
                if call.function.name == SUBMIT:
                    result = self._output(call.function.arguments)
                    if not isinstance(result, str):
                        return result
                else:
                    result = self._call(call)
                self.messages.append({"role": "tool", "tool_call_id": call.id, "content": result})

    def _ask(self, client: Any) -> Answer:
        """One answer of the model, with as many retries as the limits allow."""
        while True:
            if self.trace.requests >= self.limits.max_requests:
                raise ModelFailed("request limit")
            if self.trace.input_tokens + self.trace.output_tokens >= self.limits.max_tokens:
                raise ModelFailed("token limit")
            self.trace.requests += 1
            try:
                answer = self.model.complete(client, self.messages, self.schemas, deadline=self.deadline)
            except ModelFailed as error:
                wait = max(error.retry_after_seconds, 0.2)
                if not error.retriable or self.retries_left == 0 or wait > MAX_RETRY_WAIT_SECONDS:
                    raise
                if time.monotonic() + wait >= self.deadline:
                    raise ModelFailed("time limit") from None
                self.retries_left -= 1
                log.info("model asked again: reason=%s wait_seconds=%.1f", error.reason, wait)
                time.sleep(wait)
                continue
            self._count(answer)
            return answer

    def _count(self, answer: Answer) -> None:
        if answer.model:
            self.trace.model_answered = clean(answer.model, 100).text
        if answer.usage:
            self.trace.input_tokens += answer.usage.prompt_tokens
            self.trace.output_tokens += answer.usage.completion_tokens
        else:  # the limit must also work for a server that reports no usage: about four characters per token
            self.trace.input_tokens += len(json.dumps(self.messages)) // 4
            self.trace.output_tokens += len(answer.model_dump_json()) // 4

    def _call(self, call: ToolCall) -> str:
        """The result of a tool for the model: JSON, or an error text."""
        if len(self.trace.tool_calls) >= self.limits.max_tool_calls:
            raise ModelFailed("tool call limit")
        tool = self.tools.get(call.function.name)
        if tool is None:
            # The name is not stored, because it comes from the model and so perhaps from an attacker.
            self.trace.tool_calls.append({"name": "unknown", "arguments": {}, "ids": [], "error": "no such tool"})
            return f"Error: there is no such tool. There are: {', '.join(sorted(self.tools))}, {SUBMIT}."
        entry: dict[str, Any] = {"name": tool.name, "arguments": {}, "ids": []}
        self.trace.tool_calls.append(entry)
        try:
            arguments = tool.arguments.model_validate_json(call.function.arguments or "{}")
        except ValidationError as error:
            entry["error"] = "wrong arguments"
            return f"Error: wrong arguments. {_problems(error)}"
        entry["arguments"] = {name: _kept(value) for name, value in arguments.model_dump(mode="json").items()}
        try:
            result = tool.call(arguments)
        except Exception as error:
            # The error's text is not logged, because it may contain the parameters of a statement.
            log.warning("tool failed: name=%s error=%s", tool.name, type(error).__name__)
            entry["error"] = type(error).__name__
            raise ModelFailed(f"tool {tool.name} failed") from error
        text = json.dumps(result.content, ensure_ascii=False, default=str)
        # Includes ids in a truncated part of the result. The model has not seen these, but they are valid evidence.
        entry["ids"] = list(result.ids)
        self.returned_ids.update(result.ids)
        return clean(text, MAX_RESULT_CHARS).text

    def _output(self, text: str) -> Output | str:
        """The output, or an error text for the model; raises ModelFailed if the model has got an error text before."""
        try:
            output = self.task.output.model_validate_json(_without_code_fence(text))
            forged = set(self.task.evidence(output)) - self.returned_ids
            if forged:
                problem, reason = "The evidence names ids that no tool has returned.", "evidence that no tool returned"
            else:
                self.task.check(output)
                return output
        except ValidationError as error:
            problem, reason = f"The answer does not have its form. {_problems(error)}", "malformed answer"
        except Refused as error:
            problem, reason = f"The answer is not allowed: {error}.", f"answer not allowed: {error}"
        if self.corrections_left == 0:
            raise ModelFailed(reason)
        self.corrections_left -= 1
        return f"Error: {problem} Correct it."


def _schema(name: str, description: str, model: type[BaseModel]) -> dict[str, Any]:
    function = {"name": name, "description": description, "parameters": model.model_json_schema()}
    return {"type": "function", "function": function}


def _echo(content: str | None, calls: Sequence[ToolCall]) -> dict[str, Any]:
    """The model's message for the next request; it contains only the parts of the answer that were read."""
    return {
        "role": "assistant",
        "content": content,
        "tool_calls": [{"id": call.id, "type": "function", "function": call.function.model_dump()} for call in calls],
    }


def _kept(argument: Any) -> Any:
    """An argument for the trace: cleaned and redacted, because a model may repeat text of a customer in it."""
    return redact(clean(argument, MAX_KEPT_CHARS).text).text if isinstance(argument, str) else argument


def _problems(error: ValidationError) -> str:
    """The paths and types of the errors, without the values, which may be text of a customer."""
    return " ".join(
        f"{'.'.join(map(str, problem['loc'])) or 'answer'}: {problem['type']}." for problem in error.errors()[:5]
    )


def _without_code_fence(text: str) -> str:
    text = text.strip()
    if text.startswith("```") and text.endswith("```") and "\n" in text:
        return text[text.index("\n") : -3].strip()
    return text
