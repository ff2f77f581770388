#!/bin/sh
# Serve a pruned model with vLLM on one machine, where `pip install 'vlmprune[vllm]'` has been run.
#
#     sh examples/serving/one_machine.sh [MODEL] [ENGINES]
set -eu

model=${1:-llava-hf/llava-1.5-7b-hf} # a hub id, a local folder, or the name of an embedded model
engines=${2:-1}                      # how many GPUs hold a copy of the model each; vLLM shares requests out among them
method=divprune                      # docs/serving.md has the methods of each model
keep=0.25                            # share of each image's tokens, or a number of tokens (64)
host=127.0.0.1                       # 0.0.0.0 opens it to other machines: put a proxy with a key in front of it

# What stands behind -- is for vLLM: the longest prompt with its reply, counted after pruning, and how many requests run
# at once. Add --allow-request-keep before it to let each request choose its own budget.
exec vlmprune serve "$model" --engine vllm --method "$method" --keep "$keep" --host "$host" --port 8000 -- \
    --max-model-len 4096 --max-num-seqs 64 --data-parallel-size "$engines"
