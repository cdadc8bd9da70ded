#!/usr/bin/env bash
# The paper's claim on a laptop, from nothing, in minutes: bash demo.sh
#
# Makes a nano benchmark of invented people, trains a tiny LLaVA on them (the vanilla model), forgets a tenth of them with GA and with
# MMUnlearner, evaluates the three, and shows the table, the trade-off plot and a page with portraits and answers before and after.
# Everything lies under runs/nano/; a second run skips what is done. Learning rates: see docs/methods.md, "The nano benchmark".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source utils/environment.sh
nano=runs/nano
data=$nano/data/MLLMU-Bench
original=$nano/data/untrained
train=(--seed 42 --lora False)

# run OUTPUT INPUT... -- COMMAND: runs the command unless OUTPUT is there and newer than every INPUT
run() {
    local output=$1 input stale=0
    shift
    [ -e "$output" ] || stale=1
    while [ "$1" != -- ]; do
        input=$1
        if [ "$input" -nt "$output" ]; then stale=1; fi
        shift
    done
    shift
    if [ "$stale" = 0 ]; then
        echo "-- $output is there"
    else
        echo "-- $*"
        "$@"
    fi
}

evaluate() {
    run "$nano/$1/zero_shot/forget10/results.json" "$nano/$1/run.json" -- \
        bash MLLMU_eval.sh 10 0 1 2 3 "$nano/$1" "$original" zero_shot --data_split_dir "$data" --mcq likelihood --batch_size 64
}

echo "== 1. The nano benchmark: invented people, drawn portraits, and a tiny LLaVA with random weights"
run "$nano/data/run.json" -- "$PYTHON" data_process/make_nano.py --save_dir "$nano/data"

echo "== 2. The vanilla model learns everybody: pictures with questions, and questions in text"
run "$nano/vanilla/run.json" "$nano/data/run.json" -- "$PYTHON" MLLMU_finetune.py --model_id "$original" \
    --data_split_dir "$data" --save_dir "$nano/vanilla" --batch_size 32 --lr 1e-3 --num_epochs 8 --warmup_ratio 0.05 "${train[@]}"

echo "== 3. Forgetting a tenth of the people: GA, and MMUnlearner with its saliency mask"
forget=(--model_id "$original" --vanilla_dir "$nano/vanilla" --data_split_dir "$nano/data/MLLMMU-Bench" --forget_ratio 10)
run "$nano/GA/run.json" "$nano/vanilla/run.json" -- "$PYTHON" MLLMU_GA.py "${forget[@]}" \
    --save_dir "$nano/GA" --batch_size 4 --lr 1e-4 "${train[@]}"
run "$nano/mask/run.json" "$nano/vanilla/run.json" -- "$PYTHON" data_process/MLLMU_gen_mask.py "${forget[@]}" \
    --save_dir "$nano/mask" --batch_size 4
run "$nano/manifold/run.json" "$nano/mask/run.json" -- "$PYTHON" MLLMU_manifold.py "${forget[@]}" \
    --grad_mask_path "$nano/mask/mllmu_both_mask.pt" --save_dir "$nano/manifold" --batch_size 4 --lr 3e-4 "${train[@]}"

echo "== 4. What each model still knows"
for method in vanilla GA manifold; do evaluate "$method"; done

echo "== 5. The table, the plot and the page"
results=("$nano/vanilla" "$nano/GA" "$nano/manifold")
"$PYTHON" eval/table.py "${results[@]}" --csv "$nano/table.csv" --latex "$nano/table.tex" \
    --markdown "$nano/table.md" --plot "$nano/tradeoff.png"
"$PYTHON" eval/report.py "${results[@]}" --save_path "$nano/report.html"

cat <<END

Open $nano/report.html in a browser: portraits, and each model's answers before and after.
Next, try the mask of the language part alone:

  $PYTHON MLLMU_manifold.py ${forget[*]} \\
      --grad_mask_path $nano/mask/mllmu_language_mask.pt --save_dir $nano/manifold_language --batch_size 4 --lr 2e-4 --num_epochs 2
END
