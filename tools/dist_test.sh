#!/usr/bin/env bash
# Evaluate with one process for each GPU, on one machine or on several; without a GPU, on the CPU.
set -euo pipefail
usage='usage: tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]

CONFIG      config file
CHECKPOINT  checkpoint file of the whole model
GPUS        processes on this machine

NNODES, NODE_RANK, MASTER_ADDR, PORT, PYTHON and OMP_NUM_THREADS in the environment: as for tools/dist_train.sh --help'
source "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"

require_arguments 3 "$@"
run_torchrun "$3" test.py "$1" "$2" "${@:4}"
