"""Ports on loopback: chosen once, kept, chosen again when somebody else has taken one."""

import os
import random
import socket
from collections.abc import Callable

import psutil

from stack.errors import StackError
from stack.state import State

# Below the range from which the kernel takes the source ports of outgoing connections (32768 and up on Linux,
# 49152 and up on macOS): a port in there can be gone when a service comes back after a crash.
FIRST, LAST = 20000, 32000


def is_free(port: int) -> bool:
    with socket.socket() as sock:
        # As servers do: else connections of the last run that are still in TIME_WAIT look like a server.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def holder(port: int) -> str:
    """Who listens there, as far as this user may know."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.pid and connection.status == psutil.CONN_LISTEN and connection.laddr[1:2] == (port,):
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:
        pass
    return "another process"


def choose(state: State, name: str, report: Callable[[str], None]) -> int:
    """The port of `name`: STACK_<NAME>_PORT, or the one of the last start, or a new one."""
    variable = f"STACK_{name.upper()}_PORT"
    if wished := os.environ.get(variable):
        if not wished.isdigit():
            raise StackError(f"{variable}={wished} is not a port number; correct it or unset it")
        if not is_free(int(wished)):
            raise StackError(f"{variable}={wished} is in use by {holder(int(wished))}; end it or choose another")
        port = int(wished)
    else:
        port = state.get(f"port.{name}")
        if port and not is_free(port):
            report(f"port {port} of {name} is in use by {holder(port)}; choosing another")
            port = None
        # Nobody listens yet on those of the services that start together with this one.
        others = {taken for taken in state.ports() if taken != port}
        while not port or port in others or not is_free(port):
            port = random.randint(FIRST, LAST)
    state.set(f"port.{name}", port)
    return port
