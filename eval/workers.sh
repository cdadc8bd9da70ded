# Sourced by the evaluation scripts: runs "${command[@]}" once per entry of `gpus`, waits for all, merges, fails if any failed.

for gpu in "${gpus[@]}"; do
    [[ $gpu =~ ^[0-9]+$ ]] || { echo "error: '$gpu' is not a GPU id (0, 1, ...)" >&2; exit 2; }
done
if ! nvidia-smi -L >/dev/null 2>&1; then
    cores=$(env -u OMP_NUM_THREADS nproc)
    workers=$((${#gpus[@]} < cores ? ${#gpus[@]} : cores))
    gpus=("${gpus[@]:0:workers}")
    gpus=("${gpus[@]/*/}")    # an empty CUDA_VISIBLE_DEVICES for each
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores / workers))}
    echo "no GPU here: $workers workers on $cores CPU cores"
fi
workers=${#gpus[@]}

"${command[@]}" --check_only True    # every mistake is told once, before any worker starts
pids=()
trap 'kill "${pids[@]}" 2>/dev/null; exit 130' INT TERM
for i in "${!gpus[@]}"; do
    CUDA_VISIBLE_DEVICES=${gpus[$i]} "${command[@]}" --worker "$i" --workers "$workers" &
    pids+=($!)
done
failed=0
for i in "${!pids[@]}"; do
    wait "${pids[$i]}" || { echo "error: worker $i failed" >&2; failed=1; }
done
[ "$failed" = 0 ] || { echo "error: nothing was merged; the answers so far are kept: run the same command again" >&2; exit 1; }
"${command[@]}" --merge True
