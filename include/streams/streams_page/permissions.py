"""Who may see personal data in dead letters: a permission of its own."""

from __future__ import annotations

from typing import Annotated, Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.core_api.security import get_user
from fastapi import Depends

# The resource of the permission, with the action "can read" (FAB: `airflow roles add-perms ROLE -a can_read -r ...`).
RESOURCE = "Personal data in dead letters"


def sees_personal(user: Annotated[Any, Depends(get_user)]) -> bool:
    """Whether the user may see personal data. Nobody may, unless it was granted."""
    # The simple auth manager, which is for development, grants every custom view to every user: there, admins may.
    role = getattr(user, "role", None)
    if type(user).__name__ == "SimpleAuthManagerUser" and str(role).upper() != "ADMIN":
        return False
    return bool(get_auth_manager().is_authorized_custom_view(method="GET", resource_name=RESOURCE, user=user))
