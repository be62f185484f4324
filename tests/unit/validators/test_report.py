"""The page of a check: complete in one file, and text from messages has no effect on it."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

import pytest

from include.streams.validators.report import render

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>"


def document(**changes: Any) -> dict[str, Any]:
    outcome = {"rule": HOSTILE, "about": "run", "state": "failed", "expected": HOSTILE, "observed": HOSTILE}
    states = ("failed", "warned", "passed", "no past yet", "not measured")
    outcomes = [{**outcome, "about": a, "state": s, "where": [HOSTILE]} for a in ("run", "column") for s in states]
    return {
        "suite": HOSTILE,
        "description": HOSTILE,
        "checked_at": HOSTILE,
        "source": HOSTILE,
        "key": HOSTILE,
        "run_id": HOSTILE,
        "rows": 3,
        "counts": {HOSTILE: 1},
        "ranges": [{"partition": 0, "start": 0, "end": 3}],
        "stopped": True,
        "consequence": HOSTILE,
        "verdict": HOSTILE,
        "thing": HOSTILE,
        "what": HOSTILE,
        "steps": [{"text": HOSTILE, "command": HOSTILE}],
        "acceptances": [{"by": HOSTILE, "at": HOSTILE, "reason": HOSTILE, "rules": [HOSTILE]}],
        "outcomes": outcomes,
        **changes,
    }


@pytest.mark.parametrize("stopped", [True, False])
def test_text_from_messages_never_becomes_markup(stopped):
    page = render(document(stopped=stopped))
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page
    # Every element on the page comes from our code.
    tags = set(re.findall(r"<([a-z0-9]+)", page))
    ours = (
        "html head meta title style body main header h1 h2 p section strong dl div dt dd ol li br code "
        "table colgroup col thead tbody tr th td span footer"
    )
    assert tags <= {*ours.split()}


def test_the_page_allows_only_its_own_style():
    page = render(document())
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'")
    # Nothing that the policy would block, and nothing from another address.
    assert not re.search(r"<[^>]+ (style|on[a-z]+|src|href)=", page)
    assert "url(" not in style
    assert "@import" not in style
