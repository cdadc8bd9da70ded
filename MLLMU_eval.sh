#!/usr/bin/env bash
# Evaluate a model on MLLMU-Bench on up to four GPUs at once, and merge.
#
#   bash MLLMU_eval.sh forget_ratio gpu1 gpu2 gpu3 gpu4 evaluated_model original_model shot [flags of eval/MLLMU_eval.py]
#   bash MLLMU_eval.sh 05 0 1 2 3 runs/manifold llava-hf/llava-1.5-7b-hf zero_shot --data_split_dir data/MLLMU-Bench
#
# forget_ratio 5, 10 or 15 (05 is 5); shot zero_shot or few_shot. All splits (forget, test, retain, real) are shared evenly among
# the GPUs; an id may be repeated. Where there is no GPU, up to four CPU workers run. Stopped runs go on where they were.
set -euo pipefail

if [ $# -lt 8 ]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    echo "error: expected 8 arguments, got $#" >&2
    exit 2
fi
ratio=$1 gpus=("$2" "$3" "$4" "$5") evaluated=$6 original=$7 shot=$8
shift 8
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
command=("${PYTHON:-python}" "$here/eval/MLLMU_eval.py" --forget_ratio "$ratio" --evaluated_model "$evaluated"
    --original_model "$original" --shot "$shot" "$@")
source "$here/eval/workers.sh"
