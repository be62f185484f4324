#!/bin/sh
# Creates .venv with exactly the packages of requirements.lock. Run by `make setup`; needs only Python 3.11 to 3.13.
set -eu

cd "$(dirname "$0")/.."
. stack/progress.sh

supported() {
    # Executed, because a pyenv shim can exist and fail.
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

echo "setup, step 1 of 3: a Python 3.11, 3.12 or 3.13 and .venv (some seconds)"
if ! supported .venv/bin/python || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    python=""
    for candidate in python3.12 python3.13 python3.11 python3; do
        if supported "$candidate"; then
            python=$candidate
            break
        fi
    done
    [ -n "$python" ] || fail "no Python 3.11, 3.12 or 3.13 found; install one (python.org, your package manager) and run it again"
    echo "creating .venv with $("$python" --version)"
    "$python" -m venv --clear .venv >.venv.log 2>&1 ||
        fail "$python cannot create a virtual environment: $(tail -n 1 .venv.log); on Debian and Ubuntu install python3-venv, or free disk space"
    rm -f .venv.log
fi

# Unset: if it were set, every Airflow task process would compile all its imports, which takes 2 to 3 s.
unset PYTHONDONTWRITEBYTECODE
log=.venv/setup.log
echo "setup, step 2 of 3: uv, which installs packages (some seconds)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r stack/uv.lock >"$log" 2>&1 ||
    fail "cannot install uv: $(tail -n 1 "$log"); check network, proxy and disk space, then run it again"
# uv keeps each package that it has downloaded, so a repeated run goes on where this one ended.
echo "setup, step 3 of 3: the $(grep -c '^[a-z].*==' requirements.lock) packages of requirements.lock: download, install, compile (minutes the first time; log: $log)"
start_progress "$log"
UV_COMPILE_BYTECODE=1 .venv/bin/uv pip sync --python .venv/bin/python --require-hashes requirements.lock >"$log" 2>&1 ||
    fail "cannot install the packages: $(grep -v '^ *$' "$log" | tail -n 1); check network, proxy and disk space, then run it again (all of it: $log)"
end_progress
touch .venv/setup.stamp
echo "setup: done"
