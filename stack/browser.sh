#!/bin/sh
# Installs Debian's chromium for the tests of pages, if no chromium is there. Run by `make browser`.
#
# Not Playwright's own download: that comes from a server that a mirror of packages does not replace.
set -eu

if command -v chromium >/dev/null 2>&1; then
    exit 0
fi
if [ ! -e /etc/debian_version ] || [ "$(id -u)" -ne 0 ]; then
    echo "no chromium: the tests of pages are skipped; install it with your package manager (Debian: apt-get install chromium)"
    exit 0
fi
log=${TMPDIR:-/tmp}/install-chromium.log
echo "installing chromium"
export DEBIAN_FRONTEND=noninteractive
{
    apt-get update -qq
    # A page's text needs a font; chromium only recommends one.
    apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core
} >"$log" 2>&1 || {
    echo "error: cannot install chromium: $(grep -v '^ *$' "$log" | tail -n 1); see $log" >&2
    exit 1
}
