#!/usr/bin/env bash
# Train with one process for each GPU, on one machine or on several; without a GPU, on the CPU.
set -euo pipefail
usage='usage: tools/dist_train.sh CONFIG GPUS [options of tools/train.py]

One machine:       tools/dist_train.sh CONFIG 8
Several machines:  NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 tools/dist_train.sh CONFIG 8
                   the same on each, with NODE_RANK from 0 to NNODES - 1 and the address of the first

CONFIG           config file
GPUS             processes on this machine
NNODES           machines (1)
NODE_RANK        number of this machine, from 0
MASTER_ADDR      address of machine 0
PORT             port of machine 0 (one machine: a free one; several: 29500)
MAX_RESTARTS     how often processes are started again after one has failed (0); they resume
PYTHON           interpreter (.venv/bin/python where there is one, else python)
OMP_NUM_THREADS  CPU threads of a process (1)'
source "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"

require_arguments 2 "$@"
run_torchrun "$2" train.py "$1" "${@:3}"
