"""Webhooks of a code host: a realistic topic that somebody else defines, and the contracts that tests pick from it.

Nested documents of 5 to 30 kB with many optional members; the event's type and its id are in headers.
"""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from include.streams.contracts import At, ContractUnion, ForeignContract, ForeignPart, FromHeader, Topic
from include.streams.contracts.types import Identifier, Line, UtcTime

TYPE_HEADER, ID_HEADER = "X-Hub-Event", "X-Hub-Delivery"
WORDS = 'fix the build, naïve cache, inf nan loop, 水 level \U0001f600 of "quotes" and\nlines'
OF_AN_ACCOUNT = "followers following gists starred subscriptions organizations repos events received_events"
OF_A_REPOSITORY = """
    forks keys collaborators teams hooks issue_events events assignees branches tags blobs git_tags git_refs trees
    statuses languages stargazers contributors subscribers subscription commits git_commits comments contents
    issue_comment compare merges archive downloads issues pulls milestones notifications labels releases deployments
"""
TYPES = ("push", "issues", "pull_request", "star")

Account = Annotated[Line, Field(max_length=40)]
Name = Annotated[Line, Field(max_length=140)]
Number = Annotated[int, Field(ge=1, le=10**9)]


class Delivered(ForeignContract):
    """What every webhook has."""

    delivery: Annotated[Identifier, FromHeader(ID_HEADER)]
    repository: Annotated[Name, At("repository.full_name")]
    sender: Annotated[Account, At("sender.login")]

    event_id_sql: ClassVar[str | None] = "delivery"

    @property
    def event_id(self) -> str:
        return self.delivery


class Push(Delivered):
    ref: Annotated[Line, Field(max_length=250)]
    deleted: bool
    pushed_at: Annotated[UtcTime, At("head_commit.timestamp")] | None = None
    license: Annotated[Account, At("repository.license.key")] | None = None


class Issue(Delivered):
    action: Literal["opened", "edited", "closed"]
    number: Annotated[Number, At("issue.number")]
    opened_at: Annotated[UtcTime, At("issue.created_at")]
    score: Annotated[float, At("issue.score"), Field(ge=0, le=1)] | None = None


class Label(ForeignPart):
    name: Account


class PullRequest(Delivered):
    """Picks a list, so its messages are validated one by one."""

    number: Number
    base: Annotated[Name, At("pull_request.base.ref")]
    labels: Annotated[tuple[Label, ...], At("pull_request.labels"), Field(max_length=100)]


class Star(Delivered):
    """No contract of WEBHOOKS: its messages are not wanted."""


WEBHOOKS = ContractUnion(
    by=FromHeader(TYPE_HEADER), contracts={"push": Push, "issues": Issue, "pull_request": PullRequest}
)


def topic(contract: Any = WEBHOOKS, name: str = "code.webhooks", **changes: Any) -> Topic:
    """A topic of webhooks."""
    fields = {"key": None, "partitions": 2, "retention": timedelta(days=7), "max_bytes": 200_000, **changes}
    return Topic(name, contract, **fields)


@dataclass(frozen=True)
class Webhook:
    """One message."""

    kind: str
    delivery: str
    document: dict[str, Any]

    @property
    def value(self) -> bytes:
        return json.dumps(self.document, ensure_ascii=False, separators=(",", ":")).encode()

    @property
    def headers(self) -> list[tuple[str, bytes | None]]:
        return [
            ("User-Agent", b"Hub-Hookshot/1"),
            (TYPE_HEADER, self.kind.encode()),
            (ID_HEADER, self.delivery.encode()),
        ]

    @property
    def key(self) -> bytes:
        return self.document["repository"]["full_name"].encode()


def webhooks(count: int, *, seed: int = 1, kinds: tuple[str, ...] = TYPES) -> Iterator[Webhook]:
    """Webhooks of all kinds in turn, the same ones for the same seed.

    Args:
        count: How many.
        seed: Of the random numbers.
        kinds: The types, from TYPES.
    """
    some = random.Random(seed)
    for number in range(count):
        kind = kinds[number % len(kinds)]
        document = _MAKE[kind](some)
        delivery = str(uuid.UUID(int=some.getrandbits(128), version=4))
        yield Webhook(kind, delivery, document)


def write_sample(path: Path, count: int = 30, *, seed: int = 1) -> None:
    """Write webhooks to a file, one JSON object a line: {"key", "headers", "value"}."""
    with path.open("w", encoding="utf-8") as file:
        for one in webhooks(count, seed=seed):
            headers = {name: (value or b"").decode() for name, value in one.headers}
            line = {"key": one.key.decode(), "headers": headers, "value": one.document}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _time(some: random.Random) -> str:
    moment = datetime(2026, 3, 1, tzinfo=UTC) + timedelta(seconds=some.randrange(10**6))
    return moment.isoformat().replace("+00:00", some.choice(["Z", "+02:00", "-07:00"]))


def _words(some: random.Random, count: int) -> str:
    return " ".join(some.choice(WORDS.split(" ")) for _ in range(count))


def _account(some: random.Random) -> dict[str, Any]:
    login = f"{some.choice(['ada', 'grace', 'linus', 'élan'])}-{some.randrange(1000)}"
    return {
        "login": login,
        "id": some.randrange(10**8),
        "node_id": f"U_{some.getrandbits(64):x}",
        "avatar_url": f"https://avatars.example/u/{login}?v=4",
        "gravatar_id": "",
        **{f"{name}_url": f"https://api.example/users/{login}/{name}{{/other}}" for name in OF_AN_ACCOUNT.split()},
        "type": "User",
        "site_admin": False,
    }


def _repository(some: random.Random) -> dict[str, Any]:
    owner = _account(some)
    name = f"{owner['login']}/{some.choice(['kernel', 'site', 'dots.and-dashes'])}"
    found = {
        "id": some.randrange(10**9),
        "node_id": f"R_{some.getrandbits(64):x}",
        "name": name.partition("/")[2],
        "full_name": name,
        "private": some.random() < 0.5,
        "owner": owner,
        "description": some.choice([None, _words(some, 12)]),
        "fork": False,
        **{f"{part}_url": f"https://api.example/repos/{name}/{part}{{/sha}}" for part in OF_A_REPOSITORY.split()},
        "created_at": _time(some),
        "pushed_at": some.choice([some.randrange(10**9, 2 * 10**9), _time(some)]),
        "size": some.randrange(10**6),
        "topics": ["kafka", "airflow"][: some.randrange(3)],
        "license": some.choice([None, {"key": "mit", "name": "MIT License", "spdx_id": "MIT"}]),
        "default_branch": "main",
        "permissions": {"admin": False, "push": False, "pull": True},
    }
    if some.random() < 0.3:
        found["custom_properties"] = {"team.name": "core", "ratio": 1.5e-7}
    return found


def _commit(some: random.Random) -> dict[str, Any]:
    who = {"name": "Ada", "email": "ada@example.org", "username": "ada"}
    files = [f"src/module_{some.randrange(50)}/file_{some.randrange(99)}.py" for _ in range(some.randrange(8))]
    return {
        "id": f"{some.getrandbits(160):040x}",
        "tree_id": f"{some.getrandbits(160):040x}",
        "distinct": True,
        "message": _words(some, some.randrange(3, 40)),
        "timestamp": _time(some),
        "author": who,
        "committer": who,
        "added": files[:2],
        "removed": [],
        "modified": files[2:],
    }


def _base(some: random.Random) -> dict[str, Any]:
    found = {"repository": _repository(some), "sender": _account(some)}
    if some.random() < 0.4:
        found["organization"] = {"login": "org", "id": 7, "description": None}
    if some.random() < 0.2:
        found["installation"] = {"id": 5, "node_id": "x"}
    return found


def _push(some: random.Random) -> dict[str, Any]:
    commits = [_commit(some) for _ in range(some.randrange(20))]
    return {
        "ref": some.choice(["refs/heads/main", "refs/tags/v1.0", "refs/heads/feature/é"]),
        "before": "0" * 40,
        "after": f"{some.getrandbits(160):040x}",
        "created": False,
        "deleted": not commits,
        "forced": False,
        "base_ref": None,
        "compare": "https://example/compare",
        "commits": commits,
        "head_commit": commits[-1] if commits else None,
        "pusher": {"name": "ada", "email": None},
        **_base(some),
    }


def _issue_body(some: random.Random) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": some.randrange(10**9),
        "number": some.randrange(1, 10**5),
        "title": _words(some, 6),
        "user": _account(some),
        "labels": [{"id": n, "name": name, "color": "fff"} for n, name in enumerate(["bug", "good first issue"])],
        "state": "open",
        "assignees": [_account(some) for _ in range(some.randrange(4))],
        "milestone": some.choice([None, {"title": "1.0", "creator": _account(some), "due_on": _time(some)}]),
        "comments": some.randrange(9),
        "created_at": _time(some),
        "closed_at": None,
        "body": some.choice([None, _words(some, some.randrange(5, 400))]),
        "reactions": {"total_count": 3, "+1": 2, "-1": 1, "heart": 0},
    }
    if some.random() < 0.5:
        found["score"] = some.choice([0.25, 1, 0, 1e-3])
    return found


def _issues(some: random.Random) -> dict[str, Any]:
    found = {"action": some.choice(["opened", "edited", "closed"]), "issue": _issue_body(some), **_base(some)}
    if found["action"] == "edited":
        found["changes"] = {"title": {"from": _words(some, 5)}}
    return found


def _pull_request(some: random.Random) -> dict[str, Any]:
    body = _issue_body(some)
    return {
        "action": "synchronize",
        "number": body["number"],
        "pull_request": {
            **body,
            "head": {"ref": "feature", "user": _account(some), "repo": _repository(some)},
            "base": {"ref": "main", "user": _account(some), "repo": _repository(some)},
            "merged": None,
            "_links": {name: {"href": f"https://example/{name}"} for name in ("self", "html", "commits")},
        },
        **_base(some),
    }


def _star(some: random.Random) -> dict[str, Any]:
    return {"action": "created", "starred_at": _time(some), **_base(some)}


_MAKE = {"push": _push, "issues": _issues, "pull_request": _pull_request, "star": _star}
