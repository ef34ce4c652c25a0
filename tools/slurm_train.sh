#!/usr/bin/env bash
# Train as a Slurm job with one process for each GPU.
set -euo pipefail
usage='usage: tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]

GPUS=16 tools/slurm_train.sh PARTITION JOB_NAME CONFIG --work-dir DIR

GPUS           processes in all (8)
GPUS_PER_NODE  processes on a machine (8, or GPUS where that is less)
CPUS_PER_TASK  CPU cores of a process, for its data loader (5)
PORT           port of the first machine (29500); jobs that share a machine need different ones
SRUN_ARGS      further options of srun, e.g. "--time 3-0 --exclusive"
PYTHON         interpreter (.venv/bin/python where there is one, else python)'
source "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"

require_arguments 3 "$@"
run_srun "$1" "$2" train.py "$3" "${@:4}"
