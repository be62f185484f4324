"""Migrations of the operational database (Alembic), run by the local stack, by a Dag and by hand.

By hand: `python -m include.streams.operations upgrade`. Every package of `include/` and `include/streams/` with
revisions in `migrations/versions` is included, and has its own version table, `alembic_version_<package>`. So an image
without a package, or an older image after a rollback, can upgrade the other packages: with one table for all packages,
Alembic would always fail at a revision that the image does not have. The revisions of `operations` run first. A
revision of another package may build on those, and on revisions of its own package.
"""

import logging
from datetime import timedelta
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import OperationalError

from include.streams.compat.connections import is_defined
from include.streams.operations.database import CONN_ID, LOCK_NOT_AVAILABLE, begin

log = logging.getLogger(__name__)

# A user that owns the tables. Where it is not defined, CONN_ID's user does, and may change what it works with.
OWNER_CONN_ID = "operations_db_owner"
HERE = Path(__file__).parent
# An arbitrary number, the same for all processes that migrate.
MIGRATION_LOCK = 7_401_512
# How long a second upgrade waits for the first; as long as `prepare_services` may run.
UPGRADE_WAIT = timedelta(minutes=5)
# How long a change of a table waits for transactions that use the table. The time is short, because all later
# transactions wait behind the change. Airflow retries it.
LOCK_WAIT = timedelta(seconds=10)
_BLOCKED = (LOCK_NOT_AVAILABLE, "40P01")  # deadlock_detected
# The one table for all packages, from before each package had its own. It is read once for each package and not
# changed, so that an older image still finds the revisions that it has applied.
SHARED_TABLE = "alembic_version"


class MigrationBlocked(Exception):
    """A migration did not get a lock in time, and nothing was applied. The text names the holders of the lock."""


def version_table(package: str) -> str:
    """The name of the table that holds the applied revisions of a package."""
    return f"{SHARED_TABLE}_{package}"


def configurations() -> dict[str, Config]:
    """Alembic's configuration for each package that has revisions, in the order in which they are applied.

    Raises:
        ValueError: A package of the project has the name of a package of the library, so both would use one version
            table.
    """
    by_package = {}
    library = HERE.parent
    # Found by their files: git leaves folders with compiled files where it removes or moves a package.
    folders = {
        path.parent for parent in (library, library.parent) for path in parent.glob("*/migrations/versions/*.py")
    }
    for folder in sorted(folders, key=lambda folder: (folder.parents[1] != HERE, str(folder))):
        package = folder.parents[1].name
        if package in by_package:
            raise ValueError(
                f"include/{package}/ and include/streams/{package}/ both have migrations, and would share the table "
                f"{version_table(package)}: rename include/{package}/"
            )
        config = Config()
        config.set_main_option("script_location", str(HERE / "migrations"))
        config.set_main_option("path_separator", "newline")
        config.set_main_option("version_locations", str(folder))
        config.attributes["version_table"] = version_table(package)
        by_package[package] = config
    return by_package


def upgrade(conn_id: str | None = None, *, lock_wait: timedelta = LOCK_WAIT) -> list[str]:
    """Upgrade the database to the newest revisions of every package in this image.

    Everything happens in one transaction under an advisory lock. After a crash nothing is applied partly. If two
    upgrades run at the same time, the second waits and finds nothing to do. A package whose tables a later image has
    already changed is skipped with a warning.

    Args:
        conn_id: The Airflow connection of the database. By default OWNER_CONN_ID if it is defined, else CONN_ID.
        lock_wait: How long a change of a table waits for transactions that use it.

    Returns:
        The applied revisions, oldest first: "<revision>: <first line of its docstring>".

    Raises:
        MigrationBlocked: A lock was not free in time. Nothing was applied; run it again.
        LookUpFailed: Airflow cannot tell whether the connection is defined.
    """
    if conn_id is None:
        conn_id = OWNER_CONN_ID if is_defined(OWNER_CONN_ID) else CONN_ID
    try:
        return _upgrade(conn_id, lock_wait)
    except OperationalError as error:
        if getattr(error.orig, "sqlstate", None) not in _BLOCKED:
            raise
        raise MigrationBlocked(_blocked(conn_id, lock_wait)) from error


def _upgrade(conn_id: str, lock_wait: timedelta) -> list[str]:
    applied: list[str] = []

    def note(*, step, **_) -> None:
        applied.append(f"{step.up_revision_id}: {step.up_revision.doc}")

    with begin(conn_id, patience=UPGRADE_WAIT) as connection:
        connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
        connection.execute(text(f"set local lock_timeout = '{lock_wait.total_seconds() * 1000:.0f}ms'"))
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


# Sessions whose transaction was open during the whole wait. Their query texts are not selected, because a person's
# query may contain text of customers.
_HOLDERS = text("""
select activity.pid, activity.usename, activity.application_name, activity.client_addr, activity.state,
    activity.xact_start, coalesce(string_agg(distinct locks.relation::regclass::text, ', ')
        filter (where locks.relation is not null), 'the migration') as held
from pg_stat_activity activity join pg_locks locks using (pid)
left join pg_class on pg_class.oid = locks.relation
where activity.datname = current_database() and activity.pid <> pg_backend_pid() and locks.granted
    and activity.xact_start < clock_timestamp() - cast(:waited as interval)
    and (pg_class.relkind in ('r', 'p') and pg_class.relnamespace = 'public'::regnamespace
        or locks.locktype = 'advisory' and locks.objid = :lock)
group by 1, 2, 3, 4, 5, 6 order by activity.xact_start limit 3
""")


def _blocked(conn_id: str, lock_wait: timedelta) -> str:
    """The error text, which names the sessions that hold the locks."""
    with begin(conn_id) as connection:
        holders = connection.execute(_HOLDERS, {"waited": lock_wait, "lock": MIGRATION_LOCK}).all()
    who = "; ".join(
        f"process {row.pid} ({row.usename}, {row.application_name or 'no application name'}, "
        f"at {row.client_addr or 'a local socket'}) is {row.state}, its transaction began at "
        f"{row.xact_start:%Y-%m-%d %H:%M:%S %Z}, and it holds locks on {row.held}"
        for row in holders
    )
    return (
        "operational database: nothing was applied, because a table was not free within "
        f"{lock_wait.total_seconds():g} s: {who or 'the session that held it is gone'}. Let it finish, or end it with "
        "`select pg_terminate_backend(PROCESS)`; then run the Dag prepare_services again"
    )


def _leave_shared_table(connection: Connection, package: str, config: Config) -> None:
    """Copy the package's revisions once from the table that all packages shared to the package's own table."""
    inspector = inspect(connection)
    own = version_table(package)
    if inspector.has_table(own) or not inspector.has_table(SHARED_TABLE):
        return
    branches = {label for revision in _scripts(config).walk_revisions() for label in revision.branch_labels}
    # A revision is named after its branch, so revisions that this image does not have can be assigned to the package.
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
