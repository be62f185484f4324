"""Who may approve: users that an Airflow Variable names.

Airflow 3.3 knows assigned users of a required action, and no roles. It refuses an answer of anybody else. The executor
checks the answer again, because somebody may have been removed from the list in the meantime, and because an Airflow in
which everybody is an administrator (`[core] simple_auth_manager_all_admins`) does not check.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

_USERS: TypeAdapter[list[str]] = TypeAdapter(list[str])


@dataclass(frozen=True)
class Approvers:
    """The users who may approve.

    Attributes:
        users: Their ids in Airflow; empty if nobody may approve.
        problem: Why nobody may approve, with the remedy; empty otherwise.
    """

    users: tuple[str, ...]
    problem: str = ""

    def assigned(self) -> list[dict[str, str]]:
        """The users as `assigned_users` of an operator."""
        return [{"id": user, "name": user} for user in self.users]


def read_approvers(variable: str) -> Approvers:
    """Read the users from an Airflow Variable. Call this in a task.

    Without a valid Variable, nobody may approve: otherwise a mistake in a deployment would let everybody approve.

    Args:
        variable: The Variable's name. Its value is a JSON array of user ids, such as ["ann", "bob"]. An id is what
            Airflow's auth manager uses: the user name of the simple auth manager, a number in FAB.

    Returns:
        The approvers.
    """
    from airflow.sdk import Variable

    return parse_approvers(Variable.get(variable, default=None), variable)


def parse_approvers(value: Any, variable: str) -> Approvers:
    """The users in the value of a Variable.

    Args:
        value: The value; None if the Variable is not defined.
        variable: The Variable's name, for the text.
    """
    remedy = f'set the Airflow Variable {variable} to a JSON array of user ids, such as ["ann", "bob"]'
    if value is None:
        return Approvers((), f"nobody may approve: {remedy}")
    try:
        users = _USERS.validate_python(json.loads(value), strict=True)
    except (TypeError, ValueError, ValidationError):
        return Approvers((), f"nobody may approve, because the Variable {variable} has another form: {remedy}")
    named = tuple(dict.fromkeys(filter(None, (user.strip() for user in users))))
    return Approvers(named, "" if named else f"nobody may approve, because the list is empty: {remedy}")
