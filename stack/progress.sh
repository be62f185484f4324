# Functions for scripts that take minutes: read it with `.`.

fail() {
    echo "error: $1" >&2
    exit 1
}

# `start_progress LOG` prints the elapsed time and the last line of LOG every 10 s, until `end_progress`, the end of the
# script, or its kill. PROGRESS_SECONDS changes the interval.
start_progress() {
    (
        elapsed=0
        while sleep "${PROGRESS_SECONDS:-10}" >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
            elapsed=$((elapsed + ${PROGRESS_SECONDS:-10}))
            printf '  %4d s  %.100s\n' "$elapsed" "$(grep -v '^ *$' "$1" 2>/dev/null | tail -n 1)"
        done
    ) &
    progress=$!
    trap end_progress EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

end_progress() {
    kill "$progress" 2>/dev/null || :
    trap - EXIT INT TERM
}
