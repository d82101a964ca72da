#!/usr/bin/env bash
# A Cloud TPU slice of several hosts: the same command on each; they find each other by the slice's metadata.
#
#   TPU=NAME ZONE=ZONE launch/tpu_pod.sh --teacher.path DIR --dataset.root DIR --output-dir RUN --batch-size 1024
#
# Needs gcloud here; on every host a clone in ~/jaxreflow with `pip install -e '.[tpu]'` in its .venv, and DIR and RUN on a
# disk that all hosts mount (Filestore, or a bucket by gcsfuse). After a preemption run it again with --resume.
set -euo pipefail
: "${TPU:?the name of the slice}" "${ZONE:?its zone}"
command="cd ~/jaxreflow && .venv/bin/python train.py reflow --distributed auto --dtype bfloat16$(printf ' %q' "$@")"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker all --command "$command"
