#!/usr/bin/env bash
# Training on one to four machines: the same command on each, in any order, also later and again.
#   deploy/train-nodes.sh FIRST-HOST:29400 NAME --data /shared/cocolvis --precision bfloat16 --output /shared/runs/NAME
# FIRST-HOST is one of them, which stays; --data and --output are folders that all of them see.
# GPUS is how many each has, 8 unless it is set; NODES is how many there may be.
set -euo pipefail
endpoint=${1:?the address of the first machine and a port, such as node1:29400}
name=${2:?a name for the run, the same on all machines}
shift 2
# Shared, the store of a node that was once the first keeps being used by it after another has become the first: they then
# wait for each other without end (seen with torch 2.15).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# Without a folder for logs torchrun makes one among the temporary files, and leaves it there.
exec torchrun --log-dir /dev/null --nnodes "${NODES:-1:4}" --nproc-per-node "${GPUS:-8}" --max-restarts 100 \
  --rdzv-backend c10d --rdzv-endpoint "$endpoint" --rdzv-id "$name" \
  -m train fit --elastic "$@"
