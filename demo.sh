#!/usr/bin/env bash
# The paper's claim on a laptop, from nothing, in minutes: bash demo.sh [mllmu|clear]
#
# Makes a nano benchmark of invented people, trains a tiny LLaVA on them (the vanilla model), forgets a tenth of them with every method,
# retrains without their pictures (the gold standard), evaluates all, and shows the table, the trade-off plot and a page with portraits
# and answers before and after. Everything lies under runs/nano/ (clear: runs/nano_clear/); a second run skips what is done.
# Where the learning rates come from: docs/nano.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source utils/environment.sh

bench=${1:-mllmu}
made=runs/nano/data
original=$made/untrained
train=(--seed 42 --lora False)
export OMP_NUM_THREADS=1    # the same numbers on any number of cores, and two models can train side by side
case $bench in
    mllmu)
        nano=runs/nano prefix=MLLMU data=$made/MLLMU-Bench splits=$made/MLLMMU-Bench
        learn=(--batch_size 32 --lr 1e-3 --num_epochs 8 --warmup_ratio 0.05)
        declare -A lr=([GA]=1e-4 [GA_Diff]=1e-4 [KL_Min]=1e-4 [NPO]=1e-4 [manifold]=4e-4)
        ;;
    clear)
        nano=runs/nano_clear prefix=CLEAR data=$made/CLEAR splits=$made/CLEAR
        learn=(--batch_size 32 --lr 1e-3 --num_epochs 30 --warmup_ratio 0.05)
        declare -A lr=([GA]=8e-4 [GA_Diff]=6e-4 [KL_Min]=6e-4 [NPO]=8e-4 [manifold]=7e-4)
        ;;
    *)
        echo "error: '$bench' is neither mllmu nor clear" >&2
        exit 2
        ;;
esac

# make OUTPUT INPUT... -- COMMAND: run the command unless OUTPUT is there and no INPUT is newer
make() {
    local output=$1 stale=0
    shift
    [ -e "$output" ] || stale=1
    while [ "$1" != -- ]; do
        if [ "$1" -nt "$output" ]; then stale=1; fi
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

# method NAME FLAG...: unlearn with the method's script, starting from the vanilla model
method() {
    local name=$1
    shift
    make "$nano/$name/run.json" "$nano/vanilla/run.json" -- "$PYTHON" "${prefix}_$name.py" "${forget[@]}" \
        --save_dir "$nano/$name" --batch_size 4 --lr "${lr[$name]}" "${train[@]}" "$@"
}

evaluate() {
    local flags=(zero_shot --data_split_dir "$data" --mcq likelihood) gpus=(0 1 2 3)
    local model=$nano/$1 result=$nano/$1/zero_shot/forget10/results.json
    if [ "$bench" = mllmu ]; then
        make "$result" "$model/run.json" -- bash MLLMU_eval.sh 10 "${gpus[@]}" "$model" "$original" "${flags[@]}"
    else
        make "$result" "$model/run.json" -- bash CLEAR_eval.sh 10 90 "$model" "$original" "${gpus[@]}" "${flags[@]:1}"
    fi
}

echo "== 1. The nano benchmark: invented people, drawn portraits, and a tiny LLaVA with random weights"
make "$made/run.json" -- "$PYTHON" nano/make_nano.py --save_dir "$made"

echo "== 2. The vanilla model learns everybody; the retrained one all but the pictures of those to forget"
echo "   (it trains beside the vanilla model; its output: $nano/retrained.log)"
mkdir -p "$nano"
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
make "$nano/retrained/run.json" "$made/run.json" -- "$PYTHON" "${prefix}_reference.py" --model_id "$original" --keep_text True \
    --data_split_dir "$data" --forget_ratio 10 --save_dir "$nano/retrained" "${learn[@]}" "${train[@]}" \
    >"$nano/retrained.log" 2>&1 &
retrained=$!
make "$nano/vanilla/run.json" "$made/run.json" -- "$PYTHON" "${prefix}_finetune.py" --model_id "$original" \
    --data_split_dir "$data" --save_dir "$nano/vanilla" "${learn[@]}" "${train[@]}"
wait "$retrained" || { tail -n 5 "$nano/retrained.log" >&2; exit 1; }

echo "== 3. Forgetting a tenth of the people: four baselines, and MMUnlearner with its saliency mask"
forget=(--model_id "$original" --vanilla_dir "$nano/vanilla" --data_split_dir "$splits" --forget_ratio 10)
for name in GA GA_Diff KL_Min NPO; do method "$name"; done
make "$nano/mask/run.json" "$nano/vanilla/run.json" -- "$PYTHON" "data_process/${prefix}_gen_mask.py" "${forget[@]}" \
    --save_dir "$nano/mask" --batch_size 4
method manifold --grad_mask_path "$nano/mask/${prefix,,}_both_mask.pt"

echo "== 4. What each model still knows"
models=(vanilla GA GA_Diff KL_Min NPO manifold retrained)
for name in "${models[@]}"; do evaluate "$name"; done

echo "== 5. The table, the plot and the page"
results=("${models[@]/#/$nano/}")
"$PYTHON" eval/table.py "${results[@]}" --csv "$nano/table.csv" --latex "$nano/table.tex" \
    --markdown "$nano/table.md" --plot "$nano/tradeoff.png"
if [ "$bench" = clear ]; then
    "$PYTHON" eval/forget_quality.py "${results[@]}" --reference "$nano/retrained"
fi
"$PYTHON" eval/report.py "${results[@]}" --save_path "$nano/report.html"

cat <<END

Open $nano/report.html in a browser: portraits, and each model's answers before and after.
Next, try the mask of the language part alone:

  $PYTHON ${prefix}_manifold.py ${forget[*]} \\
      --grad_mask_path $nano/mask/${prefix,,}_language_mask.pt --save_dir $nano/manifold_language --batch_size 4 --lr 2e-4 --num_epochs 2
END
