"""`python -m stack COMMAND`: the local stack from a shell. `make help` shows the usual commands."""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from stack.errors import StackError
from stack.object_store import GCS, S3
from stack.stack import LOCAL, Stack, default_services

# A shell in which this is set has connections to other services than the stack's.
KAFKA_CONNECTION = "AIRFLOW_CONN_KAFKA_DEFAULT"
# What `make up` prints at its end.
NEXT = """\
next:
  make send TOPIC=... FILE=messages.jsonl    send messages; `make help` lists more
  make look                                  see what happens to them
  make logs S=airflow                        follow the logs of a service
  make down                                  stop everything; the data stays"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m stack", description="Real services on loopback, without Docker.")
    parser.add_argument("--folder", type=Path, default=LOCAL, help="the folder for state, data and logs")
    parser.add_argument(
        "--services",
        default=",".join(default_services()),
        help="the services, separated by commas (default: %(default)s)",
    )
    parser.add_argument("--store", choices=(GCS, S3), help="the object store at the first start (default: gcs)")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="start everything and wait until it is ready; safe to repeat")
    commands.add_parser("down", help="stop everything; the data stays")
    commands.add_parser("remove", help="stop everything and delete the data")
    status = commands.add_parser("status", help="show the services and their addresses")
    status.add_argument("--json", action="store_true", help="print one JSON object, passwords included")
    commands.add_parser("env", help="print the environment variables for the running services, passwords included")
    run = commands.add_parser("run", help="run a command with the variables of `env`, if the stack is running")
    run.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND", help="the command and its arguments")
    logs = commands.add_parser("logs", help="show the last lines of the logs, and follow them")
    logs.add_argument("service", nargs="?", help="one service or program (default: all)")
    logs.add_argument("--no-follow", action="store_true", help="print the last lines and end")
    demo = commands.add_parser("demo", help="start everything, send messages, and show the outcome of each")
    demo.add_argument("--exit", action="store_true", help="stop everything at the end instead of waiting for Ctrl-C")
    demo.add_argument(
        "--for",
        dest="seconds",
        type=int,
        default=60,
        help="how long messages are sent, in seconds (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    begin = time.monotonic()

    def report(line: str) -> None:
        print(f"{time.monotonic() - begin:6.1f} s  {line}", flush=True)

    try:
        stack = Stack(options.folder, tuple(options.services.split(",")), report=report, store=options.store)
        if options.command == "up":
            stack.up()
            print_status(stack)
            print(NEXT)
        elif options.command == "down":
            print_down(stack)
        elif options.command == "remove":
            stack.remove()
        elif options.command == "status":
            print(json.dumps(stack.endpoints(), indent=2)) if options.json else print_status(stack)
        elif options.command == "env":
            print_environment(stack)
        elif options.command == "run":
            run_command(stack, options.words)
        elif options.command == "logs":
            return show_logs(stack, options.service, follow=not options.no_follow)
        elif options.command == "demo":
            from stack.demo import demo as run_demo  # here: the other commands start faster without it

            return run_demo(stack, options.seconds, stop_at_end=options.exit)
    except StackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def print_down(stack: Stack) -> None:
    """Stop everything, and print what stays and how to delete it."""
    if not stack.folder.exists():
        print(f"there is no stack in {stack.folder}; `make up` starts one")
        return
    was_running = stack.is_running()
    stack.down()
    kept = stack.data_folders()
    size = sum(file.lstat().st_size for folder in kept for file in folder.rglob("*") if not file.is_dir())
    print(
        f"{'stopped everything' if was_running else 'the stack was not running'}; the data and the logs stay in "
        f"{' and '.join(map(str, kept))} ({size / 1e6:.0f} MB)"
    )
    print("`make up` starts it again with this data; `.venv/bin/python -m stack remove` deletes the data")


def print_status(stack: Stack) -> None:
    """Print a table of the services, then the addresses."""
    endpoints = stack.endpoints()
    for name, entry in endpoints["services"].items():
        print(f"{name:15} {entry['state']:9} {entry['pid'] or '-':>8}  {entry['log']}")
    if not stack.is_running():
        print("the stack is down; `make up` starts it")
        return
    if endpoints["kafka"]:
        print(f"{'Kafka':15} {endpoints['kafka']['bootstrap_servers']}")
    if endpoints["postgres"]:
        print(f"{'PostgreSQL':15} {endpoints['postgres']['host']}:{endpoints['postgres']['port']}")
    if store := endpoints["object_store"]:
        print(f"{'Object store':15} {store['url']} (buckets {', '.join(store['buckets'])})")
    if endpoints["registry"]:
        print(f"{'Schema registry':15} {endpoints['registry']['url']}")
    if endpoints["connect"]:
        print(f"{'Kafka Connect':15} {endpoints['connect']['url']}")
    if airflow := endpoints["airflow"]:
        print(f"{'Airflow':15} {airflow['url']} (user {airflow['username']}, password {airflow['password']})")
    print("`make status JSON=1` prints all addresses, with the passwords")


def print_environment(stack: Stack) -> None:
    """Print shell commands that export the variables of the stack's own processes, and put its `psql` on the PATH."""
    if not stack.is_running():
        raise StackError("the stack is down; `make up` starts it")
    variables = stack.environment()
    if binaries := getattr(stack.services.get("postgres"), "binaries", None):
        variables["PATH"] += f"{os.pathsep}{binaries}"
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")


def run_command(stack: Stack, words: list[str]) -> None:
    """Replace this process with a command that can reach the services.

    A shell that has connections to a deployment keeps them.

    Args:
        stack: The stack.
        words: The command and its arguments.

    Raises:
        StackError: There is no command, or the stack is down and the shell has no connection to a broker of its own.
    """
    if not words:
        raise StackError("give a command: python -m stack run COMMAND ...")
    if KAFKA_CONNECTION in os.environ:
        os.execvp(words[0], words)
    if not stack.is_running():
        raise StackError(
            f"the stack is down; `make up` starts it. For a deployment, set {KAFKA_CONNECTION} and other connections"
        )
    os.execvpe(words[0], words, {**os.environ, **stack.environment()})


def show_logs(stack: Stack, service: str | None, follow: bool) -> int:
    names = stack.programs_of(service) if service else sum((s.program_names for s in stack.services.values()), ())
    files = [path for name in names if (path := stack.supervisor.logs / f"{name}.log").exists()]
    if not files:
        raise StackError(f"no logs in {stack.supervisor.logs} yet; `make up` starts the stack")
    # -F: follows the new file after a rotation.
    return subprocess.call(["tail", "-n", "40", *(["-F"] if follow else []), *map(str, files)])


if __name__ == "__main__":
    sys.exit(main())
