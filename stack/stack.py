"""A stack: its folder, its services, and how they start and stop together."""

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from include import project
from stack import object_store, ports
from stack.airflow import Airflow
from stack.connect import Connect
from stack.errors import StackError
from stack.feeds import Feeds
from stack.kafka import Kafka
from stack.postgres import Postgres
from stack.registry import Registry
from stack.service import Service
from stack.state import State
from stack.supervisor import Supervisor

log = logging.getLogger(__name__)
PROJECT = Path(__file__).resolve().parents[1]
LOCAL = PROJECT / ".stack" / "local"  # the folder of `make up`; the jars are next to it and stay when it is removed
SERVICES = ("postgres", "registry", "kafka", "objectstore", "connect", "feeds", "airflow")
MIN_FREE_BYTES = 300 * 1024**2  # with less, PostgreSQL and Kafka fail in the middle of a write


def default_services() -> tuple[str, ...]:
    """The services of `make up`: all, without the schema registry if no declared topic needs it."""
    return tuple(name for name in SERVICES if name != "registry" or project.PROJECT.needs_registry)


class Stack:
    """Services as processes under one supervisord, with all of their data in one folder.

    Args:
        folder: The folder.
        services: Any of SERVICES, started in that order; by default those of `default_services`.
        kafka_security: "plaintext", "sasl_ssl" (SCRAM-SHA-512 over TLS) or "acls" (the same, and everything that no ACL
            allows is refused); fixed for the lifetime of a folder.
        report: Called with each line of progress; logging by default.
        store: The object store at the first start, "gcs" or "s3"; fixed for the lifetime of a folder. None: the store
            that the folder has, at the first start "gcs".
        environment: Settings that override the stack's own, such as another AIRFLOW__CORE__DAGS_FOLDER.

    Raises:
        StackError: The services are unknown, or one of them needs another one.
    """

    def __init__(
        self,
        folder: Path,
        services: tuple[str, ...] | None = None,
        kafka_security: str = "plaintext",
        report: Callable[[str], None] = log.info,
        environment: Mapping[str, str] | None = None,
        store: str | None = None,
    ):
        services = default_services() if services is None else services
        if unknown := set(services) - set(SERVICES):
            raise StackError(f"unknown services {sorted(unknown)}; choose from {', '.join(SERVICES)}")
        self.folder = Path(folder).resolve()
        self.report = report
        self.overrides = dict(environment or {})
        self.kafka_security = kafka_security
        self.store = store
        self.service_names = tuple(name for name in SERVICES if name in services)
        self._load()

    def _load(self) -> None:
        self.state = State(self.folder)
        self.supervisor = Supervisor(self.state, self.folder)
        arguments = (self.state, self.folder, self.report)
        self.postgres = Postgres(*arguments)
        self.kafka = Kafka(*arguments, security=self.kafka_security, connections=project.PROJECT.kafka_connections)
        self.object_store = object_store.of_stack(*arguments)
        self.registry = Registry(*arguments, postgres=self.postgres)
        self.connect = Connect(*arguments, kafka=self.kafka)
        self.feeds = Feeds(*arguments, commands=project.PROJECT.feeds)
        self.airflow = Airflow(
            *arguments,
            postgres=self.postgres,
            child_environment=self.environment,
        )
        all_services: tuple[Service, ...] = (
            self.postgres, self.registry, self.kafka, self.object_store, self.connect, self.feeds, self.airflow,
        )  # fmt: skip
        self.services = {service.name: service for service in all_services if service.name in self.service_names}
        if "airflow" in self.services and "postgres" not in self.services:
            raise StackError("airflow needs the service postgres for its metadata; add it")
        if "registry" in self.services and "postgres" not in self.services:
            raise StackError("registry needs the service postgres for its schemas; add it")
        if "connect" in self.services and "kafka" not in self.services:
            raise StackError("connect needs the service kafka; add it")

    def up(self) -> None:
        """Start all services and wait until they are ready. Safe to repeat.

        Raises:
            StackError: A service does not start, or there is no disk space.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                self._load()  # another process may have written the state since this object was created
                object_store.choose_store(self.state, self.store)
                self._load()
                self._up()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise StackError(f"no space left on the disk of {error.filename or self.folder}; free some") from error

    def _up(self) -> None:
        begin = time.monotonic()
        external = self._external_addresses()
        same_addresses = external == self.state.get("external")
        self.state.set("external", external)
        running = self.supervisor.info()
        expected = {name for service in self._local() for name in service.program_names}
        if running and same_addresses and set(running) == expected:
            away = [name for name, entry in running.items() if entry["state"] != "RUNNING"]
            self.report(f"the stack is running, without {', '.join(away)}" if away else "the stack is running already")
            self._start_in_order()  # can be repeated; it starts what an `up` that was killed did not start
            return
        if running:
            self.report("the stack runs with other services or addresses: restarting it")
            self._stop_all()
        if ended := self.supervisor.end_leftovers():
            self.report(f"stopped processes of an earlier run: {', '.join(ended)}")
        if (free := shutil.disk_usage(self.folder).free) < MIN_FREE_BYTES:
            raise StackError(
                f"no disk space: {free >> 20} MB free in {self.folder}, {MIN_FREE_BYTES >> 20} MB needed; free some"
            )
        for service in self._local():
            for port in service.ports:
                ports.choose(self.state, port, self.report)
        for service in self._local():
            service.prepare()
        programs = [program for service in self._local() for program in service.programs()]
        self.supervisor.start(programs, self.environment())
        try:
            self._start_in_order()
        except BaseException:
            self._stop_all()  # an incomplete stack would occupy ports and memory, and hide the error in `make status`
            raise
        self.report(f"all services are ready after {time.monotonic() - begin:.1f} s")

    def _stop_all(self) -> None:
        # Kafka Connect without a broker does not end: it would be killed after half a minute.
        self.supervisor.stop(first=(self.airflow.program_names, self.connect.program_names))

    def _start_in_order(self) -> None:
        base = [service for service in self._local() if service is not self.airflow]
        begin = time.monotonic()
        self.report(f"starting {', '.join(service.name for service in base)}")
        for service in base:  # all at once, because each mostly waits
            if service is not self.registry:
                self._start(service)
        for service in base:
            with self._explained(service):
                if service is self.registry:
                    self._start(service)  # now, because its database exists only since PostgreSQL is ready
                self._wait(service)
                service.after_start()
            self.report(f"{service.name} is ready ({time.monotonic() - begin:.1f} s)")
        if self.airflow.name in self.services:
            with self._explained(self.airflow):
                self.airflow.before_start()
            self.report("preparing tables, topics and connectors")
            self.prepare_project()
            begin = time.monotonic()
            self.report("starting airflow")
            self._start(self.airflow)
            self._wait(self.airflow)
            self.report(f"airflow is ready ({time.monotonic() - begin:.1f} s): {self.airflow.url}")

    def _start(self, service: Service) -> None:
        for name in service.program_names:
            self.supervisor.start_program(name)

    @contextlib.contextmanager
    def _explained(self, service: Service) -> Iterator[None]:
        """Replace an error of a client, such as a refused connection, by a sentence that names the log."""
        try:
            yield
        except StackError:
            raise
        except Exception as error:
            text = next(iter(str(error).strip().splitlines()), "")
            log_file = self.supervisor.logs / f"{service.program_names[0]}.log"
            raise StackError(
                f"{service.name} started, but could not be prepared ({type(error).__name__}: {text}); see {log_file}, "
                "and run it again"
            ) from error

    def _wait(self, service: Service) -> None:
        deadline = time.monotonic() + service.ready_seconds
        while True:
            states = {name: entry["state"] for name, entry in self.supervisor.info().items()}
            # Check both: Airflow reports a component as healthy until 30 s after it was killed.
            if all(states.get(name) == "RUNNING" for name in service.program_names) and service.is_ready():
                return
            failed = [name for name in service.program_names if states.get(name) == "FATAL"]
            if failed or not states or time.monotonic() > deadline:
                name = (failed or list(service.program_names))[0]
                reason = self.supervisor.last_log_line(name)
                if failed or not states:
                    what = f"{name} does not start: {reason}"
                else:
                    what = (
                        f"{service.name} is not ready after {service.ready_seconds} s; if the machine is busy, run it "
                        f"again (last line of {name}: {reason})"
                    )
                raise StackError(f"{what}; see {self.supervisor.logs}/{name}.log")
            time.sleep(0.1)

    def down(self) -> None:
        """End every process of this folder; the data stay."""
        if not self.folder.exists():
            return
        with self._locked():
            self._load()
            self._stop_all()
            self.supervisor.end_leftovers()

    def data_folders(self) -> list[Path]:
        """The folders that `remove` deletes; as root, PostgreSQL's may be outside of the stack's folder."""
        elsewhere = self.state.get("postgres.home")
        outside = elsewhere and not Path(elsewhere).is_relative_to(self.folder) and Path(elsewhere).is_dir()
        return [self.folder, *([Path(elsewhere)] if outside else [])]

    def remove(self) -> None:
        """End everything and delete the folder and all data."""
        self.down()
        for service in self.services.values():
            service.remove()
        shutil.rmtree(self.folder, ignore_errors=True)

    def stop(self, name: str) -> None:
        """Stop a service or one program of it; it stays stopped until `start` or `up`."""
        for program in self.programs_of(name):
            self.supervisor.stop_program(program)

    def start(self, name: str) -> None:
        """Start what `stop` has stopped; returns when it is ready."""
        for program in self.programs_of(name):
            self.supervisor.start_program(program)
        self.wait_until_ready(name)

    def restart(self, name: str) -> None:
        self.stop(name)
        self.start(name)

    def wait_until_ready(self, name: str) -> None:
        """Return when the service answers (again), for instance after a kill. Raises StackError if it does not."""
        for service in self.services.values():
            if name == service.name or name in service.program_names:
                self._wait(service)

    def pids(self, name: str) -> list[int]:
        """The process ids of a service's programs, or of one program; [] when none runs."""
        info = self.supervisor.info()
        return [info[p]["pid"] for p in self.programs_of(name) if p in info and info[p]["pid"]]

    def programs_of(self, name: str) -> tuple[str, ...]:
        for service in self.services.values():
            if name == service.name:
                return service.program_names
            if name in service.program_names:
                return (name,)
        known = [name for service in self.services.values() for name in (service.name, *service.program_names)]
        raise StackError(f"unknown service {name}; choose from {', '.join(dict.fromkeys(known))}")

    def is_running(self) -> bool:
        return self.supervisor.is_running()

    def environment(self) -> dict[str, str]:
        """The variables of processes that use the services: connections, Airflow's settings, PYTHONPATH."""
        environment = {
            "PYTHONPATH": str(PROJECT),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            # Empty counts as unset. If it were set, every task process would compile all of its imports: 2-3 s each.
            "PYTHONDONTWRITEBYTECODE": "",
        }
        for service in self.services.values():
            environment |= service.environment()
        return environment | self.overrides

    def endpoints(self) -> dict[str, Any]:
        """The addresses and the state of all services; passwords included."""
        status: dict[str, Any] = {
            "kafka": None, "postgres": None, "databases": {}, "object_store": None, "registry": None, "connect": None,
            "airflow": None,
        }  # fmt: skip
        for service in self.services.values():
            status |= service.endpoints()
        info = self.supervisor.info()
        nothing = {"state": "STOPPED", "pid": None}
        status["services"] = {
            name: info.get(name) or {**nothing, "log": str(self.supervisor.logs / f"{name}.log")}
            for service in self._local()
            for name in service.program_names
        }
        return status

    def prepare_project(self) -> None:
        """Run `PROJECT.prepare` of include/project.py (migrations, topics) and report what it changed.

        It runs in a process of its own, with the environment of the Airflow processes.
        """
        done = subprocess.run(
            [sys.executable, "-m", "stack.prepare"],
            cwd=PROJECT, env={**os.environ, **self.environment()}, capture_output=True, text=True,
        )  # fmt: skip
        (self.supervisor.logs / "prepare.log").write_text(done.stdout + done.stderr)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise StackError(f"PROJECT.prepare failed: {reason}; see {self.supervisor.logs}/prepare.log")
        for line in done.stdout.splitlines():
            self.report(line)

    def _local(self) -> list[Service]:
        """The services that the stack runs itself."""
        return [service for service in self.services.values() if not service.runs_elsewhere]

    def _external_addresses(self) -> dict[str, str]:
        """{service: address} of the services that run elsewhere, from the environment."""
        return {
            service.name: os.environ[service.external_variable]
            for service in self.services.values()
            if service.external_variable and os.environ.get(service.external_variable)
        }

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Allow one `up` or `down` of a folder at a time. The kernel releases the lock of a process that was killed."""
        with (self.folder / "lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                holder = lock.read().strip() or "another process"
                raise StackError(f"{holder} is using {self.folder}; wait until it ends, or stop it") from None
            lock.truncate(0)
            lock.write(f"pid {os.getpid()} ({' '.join(sys.argv)[:100]})")
            lock.flush()
            yield
            lock.truncate(0)
