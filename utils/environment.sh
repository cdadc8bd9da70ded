# Sourced by demo.sh and test.sh from the project's folder: exports PYTHON, an interpreter that meets requirements.txt.
# That is the active one if it does; else .venv, which is made, and filled, once. TORCH_INDEX, if set, is a further
# index for pip, such as the one of torch's builds for CPUs, which are 4 GB smaller.

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

install_requirements() {    # a line for each package that pip fetches, with the seconds since the start
    local log=.venv/install.log start=$SECONDS
    echo "installing requirements.txt into .venv: once; minutes, by the network (all of pip's words: $log)"
    if "$PYTHON" -m pip install --disable-pip-version-check --progress-bar off \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r requirements.txt 2>&1 | tee "$log" |
        while IFS= read -r line; do
            case $line in
                *Downloading*.metadata*) ;;
                *Downloading* | *"Using cached"*) printf '%5d s  %s\n' $((SECONDS - start)) "${line#"${line%%[![:space:]]*}"}" ;;
                Installing*) printf '%5d s  unpacking %d packages\n' $((SECONDS - start)) "$(wc -w <<<"${line#*:}")" ;;
            esac
        done; then
        echo "installed in $((SECONDS - start)) s"
    else
        grep -i error "$log" | tail -3 >&2 || true
        echo "error: pip could not install requirements.txt; start again, and it goes on with what it has fetched" >&2
        exit 1
    fi
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
        install_requirements
    fi
fi
export PYTHON
