"""Personal data need a permission of their own."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

from include.streams.streams_page import permissions


class Manager:
    def __init__(self, allows: bool) -> None:
        self.allows, self.asked = allows, []

    def is_authorized_custom_view(self, **asked: Any) -> bool:
        self.asked.append(asked)
        return self.allows


@pytest.mark.parametrize("allows", [True, False])
def test_the_auth_manager_decides(monkeypatch, allows: bool):
    manager, user = Manager(allows), object()
    monkeypatch.setattr(permissions, "get_auth_manager", lambda: manager)
    assert permissions.sees_personal(user) is allows
    assert manager.asked == [{"method": "GET", "resource_name": permissions.RESOURCE, "user": user}]


@pytest.mark.parametrize(("role", "sees"), [("admin", True), ("op", False), ("viewer", False), (None, False)])
def test_the_simple_auth_manager_lets_only_admins_see_them(monkeypatch, role: str | None, sees: bool):
    monkeypatch.setattr(permissions, "get_auth_manager", lambda: Manager(True))
    assert permissions.sees_personal(SimpleAuthManagerUser(username="ann", role=role)) is sees
