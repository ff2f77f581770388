#!/usr/bin/env bash
# The timing tables of papers, repeated on a GPU with random weights: at most ten minutes on one H200, the most important
# first. Raw numbers go to OUT (benchmarks/results by default), and each part is kept as it is finished.
#
#     benchmarks/gpu.sh              on a GPU
#     DRY=1 benchmarks/gpu.sh        the same commands on a CPU, with small models and few turns
#     OUT=DIR benchmarks/gpu.sh      elsewhere
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python}
out=${OUT:-benchmarks/results}
failed=0

# speed LIMIT ARGUMENTS: seconds that a part may take; what it measured until then is kept
speed() {
    local limit=$1
    shift
    printf '\n== vlmprune bench --speed %s\n' "$*"
    timeout --signal=INT --kill-after=30 "$limit" "$python" -m vlmprune.cli bench --speed --out "$out" --force "$@"
    local code=$?
    if [ $code -ne 0 ]; then
        echo "stopped with exit code $code"
        failed=1
    fi
}

# A preset; in a dry run its architecture small, with these visual tokens
preset() {
    local limit=$1 name=$2 small=$3 visual=$4
    shift 4
    if [ -n "${DRY:-}" ]; then
        speed 600 --preset "$name" --random "$small" --visual-tokens "$visual" --repeats 1 --new-tokens 2 --device cpu
    else
        speed "$limit" --preset "$name" --device cuda "$@"
    fi
}

preset 240 hilo-table8 qwen3-vl-8b:layers=3,encoder_layers=3,shrink=16 16,64 --repeats 5
preset 90 uniprunebench-table4 internvl3-8b:layers=3,encoder_layers=2,shrink=14 256 --repeats 5
preset 120 hiprune-table6 llava-next-7b:layers=3,encoder_layers=3,shrink=16 1752 --repeats 5
if [ -n "${DRY:-}" ]; then
    speed 600 --random qwen3-vl-8b:layers=3,encoder_layers=2,shrink=16 --visual-tokens 16,64 --batch-size 1,2 \
        --new-tokens 1,2 --methods divprune --keep 0.111 --repeats 1 --device cpu
else
    speed 150 --random qwen3-vl-8b --visual-tokens 256,1024,4096 --batch-size 1,8 --new-tokens 1,16 \
        --methods downsample,divprune,fastv@2,hilo --keep 0.111 --repeats 2 --device cuda
fi
exit $failed
