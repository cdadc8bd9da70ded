#!/usr/bin/env bash
# The study of docs/nano.md: methods at equal forgetting. bash nano/study.sh [short]
#
# Needs what demo.sh makes. Learning rates were chosen on seeds 0 and 1; these seeds are others. It goes on where it was stopped.
# Results: runs/study/<percent of the people to retain whom the methods are shown>/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source utils/environment.sh

study() {    # percent seeds methods
    "$PYTHON" nano/study.py --save_dir "runs/study/$1" --retain_fractions "$1" --seeds "$2" --methods "$3"
}

plain=4e-5/8e-5/1.6e-4 masked=5e-5/1e-4/2e-4 fewer=1e-4/2e-4/4e-4
vision=manifold:vision+inside@$masked/4e-4
part=manifold:vision:ce-t0.000001+inside@$masked/4e-4    # a mask of ones: all of the vision part
few="GA_Diff@$plain,manifold:both@$masked,$vision"
if [ "${1:-}" = short ]; then
    study 25 10,11 "$few,manifold:both:random@$masked"
    exit
fi
seeds=10,11,12,13,14,15
more="$few,manifold:both:log_odds@$fewer,$part"
masks="manifold:both:random@$masked,manifold:both:topk@$masked,manifold:both:fisher@$masked"
study 25 $seeds "$more,GA_Diff+text@$plain,$masks"
study 100 10,11,12 "GA_Diff@8e-5/1.6e-4/3.2e-4,manifold:both@$fewer,$vision/8e-4"
study 10 10,11,12 "$more"
