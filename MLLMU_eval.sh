#!/usr/bin/env bash
# Evaluate a model on MLLMU-Bench, on one to eight GPUs at once.
#
#   bash MLLMU_eval.sh forget_ratio gpu1 [gpu2 ...] evaluated_model original_model shot [flags of eval/MLLMU_eval.py]
#   bash MLLMU_eval.sh 05 0 1 2 3 runs/manifold llava-hf/llava-1.5-7b-hf zero_shot --data_split_dir data/MLLMU-Bench
#
# forget_ratio 5, 10 or 15 (05 is 5); shot zero_shot or few_shot. The questions of all splits (forget, test, retain, real) are
# shared evenly, one worker per GPU; an id may be repeated. Without a GPU as many CPU workers run, up to one per core. A stopped
# run goes on where it was.
set -euo pipefail

usage() {
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    echo "error: $1" >&2
    exit 2
}
ratio=${1:-} gpus=()
shift $(($# > 0))
while [[ ${1:-} =~ ^[0-9]+$ ]]; do gpus+=("$1"); shift; done
[ ${#gpus[@]} -gt 0 ] || usage "'${1:-}' is not a GPU id (0, 1, ...)"
[ $# -ge 3 ] || usage "expected evaluated_model, original_model and shot behind the GPU ids, got: $*"
evaluated=$1 original=$2 shot=$3
shift 3
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-$(command -v python || command -v "$here/.venv/bin/python" || command -v python3)} ||
    usage "no Python is on the path; bash test.sh makes $here/.venv, or set PYTHON"
exec "$python" "$here/eval/MLLMU_eval.py" --forget_ratio "$ratio" --evaluated_model "$evaluated" \
    --original_model "$original" --shot "$shot" --gpus "$(IFS=,; echo "${gpus[*]}")" "$@"
