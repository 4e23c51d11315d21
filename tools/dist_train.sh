#!/usr/bin/env bash
# Train on the GPUs of one machine, or of several: tools/dist_train.sh CONFIG GPUS [flags of tools/train.py]
# On each of NNODES machines, with its NODE_RANK (0, 1, ...) and the same MASTER_ADDR and PORT.
set -e
CONFIG=$1
GPUS=$2

PYTHONPATH="$(dirname "$0")/..:$PYTHONPATH" \
python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$GPUS" \
    "$(dirname "$0")/train.py" "$CONFIG" --launcher pytorch "${@:3}"
