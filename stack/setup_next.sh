#!/bin/sh
# Creates .venv-next: the packages of requirements.lock, with the Airflow of stack/next.txt. Run by `make test-next`,
# after stack/setup.sh.
set -eu

cd "$(dirname "$0")/.."
. stack/progress.sh
unset PYTHONDONTWRITEBYTECODE
log=.venv/next.log
lock=.venv/next.lock
# uv keeps the versions that the output file contains, so that only Airflow and its requirements differ.
cp requirements.lock "$lock"
echo "resolving the packages of stack/next.txt beside requirements.lock"
.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --group dev pyproject.toml \
    --override stack/next.txt -o "$lock" >"$log" 2>&1 ||
    fail "cannot resolve stack/next.txt: $(grep -v '^ *$' "$log" | tail -n 1) (all of it: $log)"
[ -x .venv-next/bin/python ] ||
    .venv/bin/uv venv --quiet --python .venv/bin/python .venv-next >"$log" 2>&1 || fail "cannot create .venv-next: $(tail -n 1 "$log")"
echo "installing them into .venv-next (minutes the first time; log: $log)"
start_progress "$log"
UV_COMPILE_BYTECODE=1 .venv/bin/uv pip sync --python .venv-next/bin/python --require-hashes "$lock" >"$log" 2>&1 ||
    fail "cannot install the packages: $(grep -v '^ *$' "$log" | tail -n 1); check network, proxy and disk space, then run it again (all of it: $log)"
end_progress
touch .venv-next/setup.stamp
