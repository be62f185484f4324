"""Migrations of the operational database (Alembic), run by the local stack, by a Dag and by hand.

By hand: `python -m include.operations upgrade`. Every folder `include/<package>/migrations/versions` takes part, and
each package has a version table of its own, `alembic_version_<package>`. So an image without a package, or an older
image after a rollback, upgrades the rest: with one table for all, Alembic fails for good at a revision that it does not
have. The revisions of `operations` run first; a revision of another package may build on those, and on its own package.
"""

import logging
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, inspect, text

from include.operations.database import CONN_ID, engine

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
# Any number will do, as long as everyone who migrates uses the same.
MIGRATION_LOCK = 7_401_512
# One table for all packages, before each had its own. It is read once for each package, and stays as it is: an older
# image still finds the revisions that it has applied.
SHARED_TABLE = "alembic_version"


def version_table(package: str) -> str:
    """The name of the table that holds the applied revisions of a package of `include/`."""
    return f"{SHARED_TABLE}_{package}"


def configurations() -> dict[str, Config]:
    """Alembic's configuration for each package that has revisions, in the order in which they are applied."""
    found = {}
    folders = HERE.parent.glob("*/migrations/versions")
    for folder in sorted(folders, key=lambda folder: (folder.parents[1] != HERE, str(folder))):
        package = folder.parents[1].name
        config = Config()
        config.set_main_option("script_location", str(HERE / "migrations"))
        config.set_main_option("path_separator", "newline")
        config.set_main_option("version_locations", str(folder))
        config.attributes["version_table"] = version_table(package)
        found[package] = config
    return found


def upgrade(conn_id: str = CONN_ID) -> list[str]:
    """Bring the database to the newest revisions of every package in this image.

    Everything happens in one transaction under an advisory lock: after a crash nothing is half done, and of two
    upgrades at once the second waits and finds nothing to do. A package whose tables a later image has already changed
    is passed over, with a warning.

    Args:
        conn_id: The connection of the database.

    Returns:
        What was applied, oldest first: "<revision>: <its first line>".
    """
    applied: list[str] = []

    def note(*, step, **_) -> None:
        applied.append(f"{step.up_revision_id}: {step.up_revision.doc}")

    with engine(conn_id).begin() as connection:
        connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
        for package, config in configurations().items():
            _leave_shared_table(connection, package, config)
            if unknown := _unknown(connection, package, config):
                log.warning(
                    "operational database: the tables of %s are at %s, which this image does not have. A later image "
                    "has changed them; nothing is applied to them. Deploy that image again, or a newer one",
                    package,
                    ", ".join(unknown),
                )
                continue
            config.attributes.update(connection=connection, on_version_apply=note)
            command.upgrade(config, "heads")
    for revision in applied:
        log.info("operational database: applied %s", revision)
    return applied


def _leave_shared_table(connection: Connection, package: str, config: Config) -> None:
    """Copy the package's revisions from the table that all packages shared into its own, once."""
    inspector = inspect(connection)
    own = version_table(package)
    if inspector.has_table(own) or not inspector.has_table(SHARED_TABLE):
        return
    branches = {label for revision in _scripts(config).walk_revisions() for label in revision.branch_labels}
    # A revision is named after its branch, so that one that this image does not have is known as the package's too.
    revisions = [r for r in _revisions(connection, SHARED_TABLE) if r.rpartition("_")[0] in branches]
    if revisions:
        connection.execute(text(f"create table {own} (version_num varchar(32) primary key)"))
        insert = text(f"insert into {own} (version_num) values (:revision)")
        connection.execute(insert, [{"revision": revision} for revision in revisions])


def _unknown(connection: Connection, package: str, config: Config) -> list[str]:
    """Applied revisions of the package that this image does not have."""
    if not inspect(connection).has_table(version_table(package)):
        return []
    scripts = _scripts(config)
    return [r for r in _revisions(connection, version_table(package)) if not _has(scripts, r)]


def _revisions(connection: Connection, table: str) -> list[str]:
    return sorted(connection.scalars(text(f"select version_num from {table}")))


def _scripts(config: Config) -> ScriptDirectory:
    return ScriptDirectory.from_config(config)


def _has(scripts: ScriptDirectory, revision: str) -> bool:
    try:
        return scripts.get_revision(revision) is not None
    except CommandError:
        return False
