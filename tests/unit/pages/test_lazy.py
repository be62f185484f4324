"""An application is created once, with its first request."""

from __future__ import annotations

import asyncio
import sys
import types

from include.streams.pages.lazy import LazyApp, page


def test_an_application_is_created_by_its_first_request(monkeypatch):
    made, served = [], []

    async def app(scope, receive, send) -> None:
        served.append(scope)

    module = types.ModuleType("some_page")
    module.make = lambda: made.append(1) or app  # type: ignore[attr-defined]
    lazy = LazyApp("some_page:make")
    monkeypatch.setitem(sys.modules, "some_page", module)
    assert made == []

    async def ask_twice() -> None:
        await lazy("one", None, None)
        await lazy("two", None, None)

    asyncio.run(ask_twice())
    assert (made, served) == ([1], ["one", "two"])


def test_the_arguments_of_an_application_are_loaded_with_it(monkeypatch):
    served = []

    def make(project):
        async def app(scope, receive, send) -> None:
            served.append((project, scope))

        return app

    module = types.ModuleType("some_page")
    module.make, module.PROJECT = make, "the project"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "some_page", module)
    asyncio.run(LazyApp("some_page:make", "some_page:PROJECT")("one", None, None))
    assert served == [("the project", "one")]


def test_a_page_works_under_any_base_path():
    (app,), (view,) = page("Some board", "some_page:make")
    assert (app["name"], app["url_prefix"]) == ("some board", "/pages/some-board")
    assert (view["name"], view["url_route"]) == ("Some board", "some-board")
    for address in (view["href"], view["icon"], view["icon_dark_mode"]):
        assert address.startswith("pages/some-board/")
