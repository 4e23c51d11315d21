#!/usr/bin/env bash
# Test on the GPUs of one machine, or of several: tools/dist_test.sh CONFIG CHECKPOINT GPUS [flags of tools/test.py]
# On each of NNODES machines, with its NODE_RANK (0, 1, ...) and the same MASTER_ADDR and PORT.
set -e
CONFIG=$1
CHECKPOINT=$2
GPUS=$3

PYTHONPATH="$(dirname "$0")/..:$PYTHONPATH" \
python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$GPUS" \
    "$(dirname "$0")/test.py" "$CONFIG" "$CHECKPOINT" --launcher pytorch "${@:4}"
