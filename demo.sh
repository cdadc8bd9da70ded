#!/usr/bin/env bash
# The paper's claim on a laptop, from nothing, in minutes: bash demo.sh [mllmu|clear] (nano/demo.py tells what it does).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source utils/environment.sh
exec "$PYTHON" nano/demo.py "$@"
