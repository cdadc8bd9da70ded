# Sourced by demo.sh and test.sh from the project's folder: exports PYTHON, an interpreter that meets requirements.txt.
# That is the active one if it does; else .venv, which is made, and filled, once.

meets_requirements() {
    "$1" - <<'PYTHON' 2>/dev/null
import sys
from importlib.metadata import PackageNotFoundError, version
from packaging.requirements import Requirement

for line in open("requirements.txt"):
    if line := line.split("#")[0].strip():
        wanted = Requirement(line)
        try:
            if not wanted.specifier.contains(version(wanted.name), prereleases=True):
                sys.exit(1)
        except PackageNotFoundError:
            sys.exit(1)
PYTHON
}

find_python() {    # a Python of at least 3.11
    local name
    for name in python3 python3.13 python3.12 python3.11 python; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "error: no Python 3.11 or newer found; on Debian or Ubuntu: apt install python3 python3-venv" >&2
    return 1
}

if command -v python >/dev/null && meets_requirements python; then
    PYTHON=python
else
    PYTHON=.venv/bin/python
    if ! { [ -x "$PYTHON" ] && meets_requirements "$PYTHON"; }; then
        base=$(find_python)
        if ! { [ -x "$PYTHON" ] && "$PYTHON" -m pip --version >/dev/null 2>&1; }; then
            rm -rf .venv
            if ! "$base" -m venv .venv >/dev/null; then
                rm -rf .venv
                echo "error: $base cannot make a virtual environment; on Debian or Ubuntu: apt install python3-venv" >&2
                exit 1
            fi
        fi
        echo "installing requirements.txt into .venv (once; some minutes) ..."
        "$PYTHON" -m pip install -qq --disable-pip-version-check -r requirements.txt
    fi
fi
export PYTHON
