#!/usr/bin/env bash
# All checks: bash test.sh [pytest arguments]. Needs no GPU and no network beyond the one installation.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source utils/environment.sh
"$PYTHON" -m ruff check --quiet .
"$PYTHON" -m ruff format --quiet --check .
exec "$PYTHON" -m pytest "$@"
