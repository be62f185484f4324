"""Ports on loopback: chosen at the first start and stored; a port that another process uses is replaced."""

import os
import random
import socket
from collections.abc import Callable

import psutil

from stack.errors import StackError
from stack.state import State

# Below the range that the kernel uses for the source ports of outgoing connections (32768 and up on Linux, 49152 and up
# on macOS): such a port may be taken when a service restarts after a crash.
FIRST, LAST = 20000, 32000


def is_free(port: int) -> bool:
    with socket.socket() as sock:
        # Set as servers set it. Otherwise connections of the last run in the state TIME_WAIT would look like a server.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def holder(port: int) -> str:
    """The process that listens on the port, if this user may see it."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.pid and connection.status == psutil.CONN_LISTEN and connection.laddr[1:2] == (port,):
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:
        pass
    return "another process"


def choose(state: State, name: str, report: Callable[[str], None]) -> int:
    """Choose the port of `name`: STACK_<NAME>_PORT, the port of the last start, or a new one.

    Args:
        state: The state of the stack, in which the port is stored.
        name: The name of the port.
        report: Called with each line of progress.

    Raises:
        StackError: STACK_<NAME>_PORT is not a number, or in use.
    """
    variable = f"STACK_{name.upper()}_PORT"
    if wished := os.environ.get(variable):
        if not wished.isdigit():
            raise StackError(f"{variable}={wished} is not a port number; correct it or unset it")
        if not is_free(int(wished)):
            raise StackError(f"{variable}={wished} is in use by {holder(int(wished))}; stop it or choose another port")
        port = int(wished)
    else:
        port = state.get(f"port.{name}")
        if port and not is_free(port):
            report(f"port {port} of {name} is in use by {holder(port)}; choosing another")
            port = None
        # Ports of services that start together with this one are not in use yet, but must not be chosen.
        others = {taken for taken in state.ports() if taken != port}
        while not port or port in others or not is_free(port):
            port = random.randint(FIRST, LAST)
    state.set(f"port.{name}", port)
    return port
