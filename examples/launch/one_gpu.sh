#!/usr/bin/env bash
# One GPU. Started again after whatever ended it, the same command goes on where it was.
#
#   examples/launch/one_gpu.sh recipes/vit_s16_imagenet1k.toml [key=value ...]
set -euo pipefail

isoflop train "$@"
