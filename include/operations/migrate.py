"""Migrations of the operational database (Alembic), run by the local stack, by a Dag and by hand.

By hand: `python -m include.operations upgrade`. Every folder `include/<package>/migrations/versions` takes part:
a package with tables of its own adds revisions there that depend on the ones it builds on, and nothing else.
"""

import logging
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import text

from include.operations.database import CONN_ID, engine

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
# Any number will do, as long as everyone who migrates uses the same.
MIGRATION_LOCK = 7_401_512


def configuration() -> Config:
    """Alembic's configuration: all revisions, of every package."""
    folders = sorted(str(folder) for folder in HERE.parent.glob("*/migrations/versions"))
    config = Config()
    config.set_main_option("script_location", str(HERE / "migrations"))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", "\n".join(folders))
    return config


def upgrade(conn_id: str = CONN_ID) -> list[str]:
    """Bring the database to the newest revisions; returns what was applied, oldest first.

    Everything in one transaction under an advisory lock: a crash leaves nothing half made, and of two upgrades at
    once the second waits and finds nothing to do.
    """
    applied: list[str] = []

    def note(*, step, **_) -> None:
        applied.append(f"{step.up_revision_id}: {step.up_revision.doc}")

    config = configuration()
    with engine(conn_id).begin() as connection:
        connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
        config.attributes.update(connection=connection, on_version_apply=note)
        command.upgrade(config, "heads")
    for revision in applied:
        log.info("operational database: applied %s", revision)
    return applied
