#!/usr/bin/env bash
# Evaluate a model on CLEAR on up to four GPUs at once, and merge.
#
#   bash CLEAR_eval.sh forget_ratio retain_ratio evaluated_model original_model gpu1 gpu2 gpu3 gpu4 [flags of eval/CLEAR_eval.py]
#   bash CLEAR_eval.sh 05 95 runs/manifold llava-hf/llava-1.5-7b-hf 0 1 2 3 --data_split_dir data/CLEAR
#
# forget_ratio 1, 5 or 10 (05 is 5); retain_ratio is the rest to 100. All splits (forget, retain, real_faces, real_world) are shared
# evenly among the GPUs; an id may be repeated. Where there is no GPU, up to four CPU workers run. Stopped runs go on where they were.
set -euo pipefail

if [ $# -lt 8 ]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    echo "error: expected 8 arguments, got $#" >&2
    exit 2
fi
ratio=$1 retain=$2 evaluated=$3 original=$4 gpus=("$5" "$6" "$7" "$8")
shift 8
if ! [[ $ratio$retain =~ ^[0-9]+$ ]] || [ $((10#$ratio + 10#$retain)) -ne 100 ]; then
    echo "error: forget_ratio $ratio and retain_ratio $retain do not add up to 100 (e.g. 05 95)" >&2
    exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
command=("${PYTHON:-python}" "$here/eval/CLEAR_eval.py" --forget_ratio "$ratio" --evaluated_model "$evaluated"
    --original_model "$original" "$@")
source "$here/eval/workers.sh"
