#!/usr/bin/env bash
# All GPUs of one host. A process that dies is started again with the others, up to ten times; each time the run goes on
# from its last checkpoint.
#
#   examples/launch/one_host.sh recipes/vit_g14_pretraining.toml parallel.sharding=full [key=value ...]
set -euo pipefail

gpus="${GPUS:-$(nvidia-smi --list-gpus | wc -l)}"
torchrun --standalone --nproc-per-node="$gpus" --max-restarts=10 -m isoflop train "$@"
