#!/usr/bin/env bash
# Evaluate a model on CLEAR, on one to eight GPUs at once.
#
#   bash CLEAR_eval.sh forget_ratio retain_ratio evaluated_model original_model gpu1 [gpu2 ...] [flags of eval/CLEAR_eval.py]
#   bash CLEAR_eval.sh 05 95 runs/manifold llava-hf/llava-1.5-7b-hf 0 1 2 3 --data_split_dir data/CLEAR
#
# forget_ratio 1, 5 or 10 (05 is 5); retain_ratio is the rest to 100. The questions of all splits (forget, retain, real_faces,
# real_world) are shared evenly, one worker per GPU; an id may be repeated. Without a GPU as many CPU workers run, up to one per
# core. A stopped run goes on where it was.
set -euo pipefail

usage() {
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    echo "error: $1" >&2
    exit 2
}
[ $# -ge 5 ] || usage "expected at least 5 arguments, got $#"
ratio=$1 retain=$2 evaluated=$3 original=$4 gpus=()
shift 4
while [[ ${1:-} =~ ^[0-9]+$ ]]; do gpus+=("$1"); shift; done
[ ${#gpus[@]} -gt 0 ] || usage "'$1' is not a GPU id (0, 1, ...)"
if ! [[ $ratio$retain =~ ^[0-9]+$ ]] || [ $((10#$ratio + 10#$retain)) -ne 100 ]; then
    usage "forget_ratio $ratio and retain_ratio $retain do not add up to 100 (e.g. 05 95)"
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-$(command -v python || command -v "$here/.venv/bin/python" || command -v python3)} ||
    usage "no Python is on the path; bash test.sh makes $here/.venv, or set PYTHON"
exec "$python" "$here/eval/CLEAR_eval.py" --forget_ratio "$ratio" --evaluated_model "$evaluated" \
    --original_model "$original" --gpus "$(IFS=,; echo "${gpus[*]}")" "$@"
