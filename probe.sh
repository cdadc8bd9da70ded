#!/usr/bin/env bash
# Is it forgotten, or only hidden? All probes of one unlearned model, beside the retrained one, and what they found.
#
#   bash probe.sh MODEL --reference REFERENCE --vanilla VANILLA [flags of all probes, such as --gpus 0,1]
#   bash probe.sh runs/manifold --reference runs/retrained --vanilla runs/vanilla
#
# The three models were evaluated before, zero-shot. What was probed already is not probed again; stopped, it goes on. docs/probes.md
# says how to read it. A probe with flags of its own is a command of its own: python eval/probes/relearn.py --help
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ $# -lt 5 ] || [[ $1 == -* ]]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    echo "error: expected MODEL --reference REFERENCE --vanilla VANILLA, got: $*" >&2
    exit 2
fi
python=${PYTHON:-$(command -v python || command -v "$here/.venv/bin/python" || command -v python3)} || {
    echo "error: no Python is on the path; bash test.sh makes $here/.venv, or set PYTHON" >&2
    exit 2
}
for probe in quantise picture paraphrase prompt relearn depth membership memorisation facts rings; do
    echo "== $probe"
    "$python" "$here/eval/probes/$probe.py" "$@"
done
exec "$python" "$here/eval/probes/show.py" "$1"
