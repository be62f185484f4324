"""The agent's loop through the real SDK and a real socket, against an endpoint that does whatever it should not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict

from include.streams.inference.agent import MAX_RESULT_CHARS, Found, Refused, Task, Tool, Trace, run
from include.streams.inference.model import MAX_ANSWER_BYTES, ChatModel, ModelFailed, ModelSettings
from tests.integration.inference.endpoint import (
    Act,
    Endpoint,
    calls,
    drips,
    fails,
    hangs,
    hangs_up,
    replies,
    says,
    sends,
    submits,
)

PROJECT = Path(__file__).resolve().parents[3]


class Title(BaseModel):
    model_config = ConfigDict(extra="forbid")

    title: str


class Shelved(BaseModel):
    """Where a returned book belongs."""

    model_config = ConfigDict(strict=True, extra="forbid")

    shelf: Literal["fiction", "science", "cellar"]
    evidence: tuple[str, ...] = ()


GOOD = {"shelf": "science", "evidence": ["book-7"]}
LOOK_UP = calls(("find_book", {"title": "Optics"}))


def find_book(arguments: Title) -> Found:
    if arguments.title == "broken":
        raise OSError("password=hunter2")
    if arguments.title == "long":
        return Found("long " * MAX_RESULT_CHARS)
    return Found([{"id": "book-7", "title": arguments.title}], ("book-7",))


def not_the_cellar(output: Shelved) -> None:
    if output.shelf == "cellar":
        raise Refused("the cellar is locked")


TASK = Task(
    system="Shelve books.",
    user="A book called Optics.",
    tools=(Tool("find_book", "Find a book.", Title, find_book),),
    output=Shelved,
    evidence=lambda output: output.evidence,
    check=not_the_cellar,
)


class Desk:
    """Runs the task against a script; keeps the trace and what the endpoint was sent."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.trace = Trace()

    def ask(self, *script: Act, **settings: object) -> Shelved:
        self.endpoint = Endpoint(*script)
        url = self.stack.enter_context(self.endpoint.serve())
        model = ChatModel(url, "key-1", ModelSettings.model_validate({"model": "asked-1", **settings}))
        return run(model, TASK, self.trace)

    def fail(self, *script: Act, **settings: object) -> str:
        with pytest.raises(ModelFailed) as failure:
            self.ask(*script, **settings)
        return failure.value.reason

    @property
    def told(self) -> str:
        """What the model was told last."""
        return self.endpoint.conversation[-1]["content"]


@pytest.fixture
def desk() -> Iterator[Desk]:
    with ExitStack() as stack:
        yield Desk(stack)


def test_an_agent_calls_its_tools_and_answers(desk):
    assert desk.ask(LOOK_UP, submits(GOOD)) == Shelved.model_validate_json(json.dumps(GOOD))
    assert desk.trace.tool_calls == [{"name": "find_book", "arguments": {"title": "Optics"}, "ids": ["book-7"]}]
    assert desk.trace.usage == {"requests": 2, "input_tokens": 200, "output_tokens": 40}
    assert desk.trace.model_answered == "scripted-2026"
    first, second = desk.endpoint.requests
    assert first["path"] == "/v1/chat/completions"
    assert first["model"] == "asked-1"
    assert first["max_completion_tokens"] == 1_500
    assert [tool["function"]["name"] for tool in first["tools"]] == ["find_book", "submit"]
    # The second request holds the call and its result, as the protocol wants it.
    assert [message["role"] for message in second["messages"]] == ["system", "user", "assistant", "tool"]
    assert second["messages"][-1]["tool_call_id"] == "call_0"
    assert "book-7" in desk.told
    assert set(desk.endpoint.keys) == {"Bearer key-1"}


def test_an_answer_that_is_written_instead_of_submitted_counts(desk):
    assert desk.ask(says('```json\n{"shelf": "fiction"}\n```')).shelf == "fiction"


def test_several_tools_in_one_answer_all_get_their_result(desk):
    desk.ask(calls(("find_book", {"title": "A"}), ("find_book", {"title": "B"})), submits(GOOD))
    assert [m["tool_call_id"] for m in desk.endpoint.conversation if m["role"] == "tool"] == ["call_0", "call_1"]


def test_a_call_of_an_unknown_tool_gets_an_error_without_its_name(desk):
    desk.ask(calls(("burn_book", {"title": "Optics"})), submits({"shelf": "fiction"}))
    assert "no such tool" in desk.told
    assert "burn_book" not in json.dumps(desk.trace.tool_calls)


@pytest.mark.parametrize("arguments", ["{", '{"titel": "x"}', '{"title": 7}', "[]", '{"title": "x", "sql": "drop"}'])
def test_wrong_arguments_reach_no_tool(desk, arguments):
    desk.ask(calls(("find_book", arguments)), submits({"shelf": "fiction"}))
    assert "wrong arguments" in desk.told
    assert desk.trace.tool_calls[0]["ids"] == []
    assert desk.trace.tool_calls[0]["arguments"] == {}


def test_a_long_result_is_cut(desk):
    desk.ask(calls(("find_book", {"title": "long"})), submits({"shelf": "fiction"}))
    assert len(desk.told) <= MAX_RESULT_CHARS


def test_a_tool_that_fails_ends_the_run_without_the_error_text(desk, caplog):
    assert desk.fail(calls(("find_book", {"title": "broken"}))) == "tool find_book failed"
    assert desk.trace.tool_calls[0]["error"] == "OSError"
    assert "hunter2" not in caplog.text


FORGED = {"shelf": "science", "evidence": ["book-8"]}


@pytest.mark.parametrize(
    ("answer", "told", "reason"),
    [
        ({"shelf": "attic"}, "shelf: literal_error", "malformed answer"),
        ({"shelf": "fiction", "approved": True}, "approved: extra_forbidden", "malformed answer"),
        ("not json", "json_invalid", "malformed answer"),
        (FORGED, "no tool has returned", "evidence that no tool returned"),
        ({"shelf": "cellar"}, "the cellar is locked", "answer not allowed: the cellar is locked"),
    ],
)
def test_a_wrong_answer_is_given_back_once(desk, answer, told, reason):
    assert desk.ask(LOOK_UP, submits(answer), submits(GOOD)).shelf == "science"
    assert told in desk.told
    assert desk.fail(LOOK_UP, submits(answer), submits(answer)) == reason
    assert len(desk.endpoint.requests) == 3


def test_evidence_of_an_earlier_run_is_forged_evidence(desk):
    desk.ask(LOOK_UP, submits(GOOD))
    assert desk.fail(submits(GOOD)) == "evidence that no tool returned"


def test_a_wrong_text_is_given_back_once(desk):
    assert desk.fail(says("I think science."), says("Really, science.")) == "malformed answer"


@pytest.mark.parametrize(
    "act",
    [
        replies({"content": None, "refusal": "I cannot help with that."}),
        replies({"content": "Sorry"}, "content_filter"),
    ],
)
def test_a_refusal_ends_the_run(desk, act):
    assert desk.fail(act) == "the model refused"
    assert len(desk.endpoint.requests) == 1


def test_an_answer_that_was_cut_off_is_not_used(desk):
    assert desk.fail(replies({"content": '{"shelf": "fic'}, "length")) == "answer cut off"


@pytest.mark.parametrize("act", [fails(429, Retry_After="0"), fails(500), fails(503), hangs_up])
def test_a_passing_failure_is_retried_once_in_the_whole_run(desk, act):
    assert desk.ask(act, LOOK_UP, submits(GOOD)).shelf == "science"
    assert desk.trace.requests == 3
    desk.fail(act, LOOK_UP, act)
    assert len(desk.endpoint.requests) == 3


@pytest.mark.parametrize(
    ("act", "reason"),
    [(fails(429), "HTTP 429"), (fails(500), "HTTP 500"), (hangs_up, "connection failed")],
)
def test_a_lasting_failure_ends_the_run(desk, act, reason):
    assert desk.fail(act) == reason
    assert len(desk.endpoint.requests) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_an_error_that_a_retry_cannot_fix_is_not_retried(desk, status, caplog):
    assert desk.fail(fails(status)) == f"HTTP {status}"
    assert len(desk.endpoint.requests) == 1
    assert "customer@example.com" not in caplog.text


def test_a_server_that_asks_for_patience_gets_none(desk):
    assert desk.fail(fails(429, Retry_After="60"), submits(GOOD)) == "HTTP 429"
    assert len(desk.endpoint.requests) == 1


def test_a_redirect_is_not_followed(desk):
    elsewhere = Endpoint(submits({"shelf": "fiction"}))
    with elsewhere.serve() as url:
        assert desk.fail(sends(b"", 307, Location=f"{url}/chat/completions")) == "HTTP 307"
    assert elsewhere.requests == []


@pytest.mark.parametrize("act", [hangs(5), drips(5)])
def test_a_slow_server_is_given_up(desk, act):
    # Who waited to the end would have another reason: the connection was closed, or there was no answer in it.
    assert desk.fail(act, request_seconds=0.3, max_retries=0) == "timeout"


def test_the_time_limit_is_that_of_the_whole_run(desk):
    reason = desk.fail(hangs(5), max_seconds=0.5, request_seconds=30, max_retries=5)
    assert reason in ("timeout", "time limit")
    assert len(desk.endpoint.requests) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>Bad gateway</html>",
        b"null",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": 7}}]}',
        b'{"choices": [{"message": {"tool_calls": [{"id": "x", "function": {"name": "find_book"}}]}}]}',
        b'{"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": -1, "completion_tokens": 0}}',
        b"\xff\xfe\x00",
        b"[" * 100_000,
    ],
)
def test_rubbish_is_no_answer(desk, body):
    assert desk.fail(sends(body)) == "answer is not a chat completion"


def test_an_endless_answer_is_not_read_to_the_end(desk):
    assert desk.fail(sends(b" " * (MAX_ANSWER_BYTES + 1))) == "answer too large"


@pytest.mark.parametrize(
    ("settings", "reason", "requests"),
    [
        ({"max_requests": 3}, "request limit", 3),
        ({"max_tool_calls": 2}, "tool call limit", 3),
        ({"max_tokens": 250}, "token limit", 3),
    ],
)
def test_an_agent_that_only_calls_tools_is_stopped(desk, settings, reason, requests):
    assert desk.fail(LOOK_UP, **settings) == reason
    assert len(desk.endpoint.requests) == requests
    assert desk.trace.usage["requests"] == requests


def test_a_server_that_counts_no_tokens_is_stopped_too(desk):
    endless = calls(("find_book", {"title": "long"}), usage=None)
    assert desk.fail(endless, max_tokens=3_000, max_requests=50, max_tool_calls=100) == "token limit"


def test_tool_calls_in_one_answer_are_limited(desk):
    flood = calls(*[("find_book", {"title": str(n)}) for n in range(100)])
    assert desk.fail(flood, max_tool_calls=8) == "tool call limit"
    assert len(desk.trace.tool_calls) == 8


KILLED = """
import os, signal, sys
from tests.integration.inference import test_agent as t
def die(arguments):
    os.kill(os.getpid(), signal.SIGKILL)
task = t.Task("s", "u", (t.Tool("find_book", "Find a book.", t.Title, die),), t.Shelved)
t.run(t.ChatModel(sys.argv[1], "", t.ModelSettings(model="m")), task, t.Trace())
"""


def test_a_run_that_was_killed_in_the_middle_is_simply_run_again(desk):
    endpoint = Endpoint(LOOK_UP)
    with endpoint.serve() as url:
        killed = subprocess.run([sys.executable, "-c", KILLED, url], cwd=PROJECT, env={**os.environ}, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert len(endpoint.requests) == 1
    assert desk.ask(LOOK_UP, submits(GOOD)).shelf == "science"


def test_no_key_of_the_environment_is_sent(desk, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-somebody-elses")
    endpoint = Endpoint(submits({"shelf": "fiction"}))
    with endpoint.serve() as url:
        run(ChatModel(url, "", ModelSettings(model="m")), TASK, Trace())
    assert endpoint.keys == ["Bearer none"]
