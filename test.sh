#!/usr/bin/env bash
# All checks: bash test.sh [pytest arguments]. Needs no GPU and no network beyond the one installation. Without arguments every test
# runs, on two processes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source utils/environment.sh
"$PYTHON" -m ruff check --quiet .
"$PYTHON" -m ruff format --quiet --check .
[ $# -gt 0 ] || set -- --numprocesses 2 --dist loadfile
exec "$PYTHON" -m pytest "$@"
