#!/usr/bin/env bash
# Evaluate as a Slurm job with one process for each GPU.
set -euo pipefail
usage='usage: tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]

GPUS, GPUS_PER_NODE, CPUS_PER_TASK, PORT, SRUN_ARGS and PYTHON in the environment: as for tools/slurm_train.sh --help'
source "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"

require_arguments 4 "$@"
run_srun "$1" "$2" test.py "$3" "$4" "${@:5}"
