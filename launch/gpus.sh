#!/usr/bin/env bash
# One machine with several GPUs: one process drives them all.
#
#   launch/gpus.sh --teacher.path DIR --dataset.root DIR --output-dir RUN --batch-size 256
#
# Needs `pip install 'jaxreflow[cuda]'` in .venv. CUDA_VISIBLE_DEVICES chooses GPUs; --batch-size is over all of them.
set -euo pipefail
exec .venv/bin/python train.py reflow --dtype bfloat16 "$@"
