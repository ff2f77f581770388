#!/bin/sh
# Serve a pruned model with vLLM on several machines of a Ray cluster: each GPU holds a copy of the model, and one
# address answers for all. This runs on the machine whose address it is; all machines need the same versions of
# everything, installed by `pip install 'vlmprune[vllm]' ray`, and the model in the same place.
#
#     ray start --head                                  # here, first
#     ray start --address=THIS_MACHINE:6379             # on every other machine
#     sh examples/serving/several_machines.sh [MODEL] [ENGINES] [HERE]
set -eu

model=${1:-llava-hf/llava-1.5-7b-hf} # a hub id, or a folder that every machine sees under the same name
engines=${2:-8}                      # GPUs of all machines together
here=${3:-4}                         # GPUs of this machine; the others must have as many, or see `strategy`
method=divprune                      # docs/serving.md has the methods of each model
keep=0.25                            # share of each image's tokens, or a number of tokens (64)
host=127.0.0.1                       # 0.0.0.0 opens it to other machines: put a proxy with a key in front of it
strategy=strict                      # "fill" where machines have different numbers of GPUs

export VLLM_RAY_DP_PACK_STRATEGY=$strategy
# --api-server-count: processes that read requests and resize images; more of them where one cannot keep up.
exec vlmprune serve "$model" --engine vllm --method "$method" --keep "$keep" --host "$host" --port 8000 -- \
    --max-model-len 4096 --max-num-seqs 64 --api-server-count 2 \
    --data-parallel-backend ray --data-parallel-size "$engines" --data-parallel-size-local "$here"
