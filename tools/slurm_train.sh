#!/usr/bin/env bash
# Train as a Slurm job with one process for each GPU; one that Slurm ends saves first.
set -euo pipefail
usage='usage: tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]

GPUS=16 tools/slurm_train.sh PARTITION JOB_NAME CONFIG --work-dir DIR
SUBMIT=1 SRUN_ARGS="--time 4:00:00" tools/slurm_train.sh PARTITION JOB_NAME CONFIG

GPUS           processes in all (8)
GPUS_PER_NODE  processes on a machine (8, or GPUS where that is less)
CPUS_PER_TASK  CPU cores of a process, for its data loader (5)
PORT           port of the first machine (29500); jobs that share a machine need different ones
SRUN_ARGS      further options of srun or sbatch, e.g. "--time 3-0 --exclusive"
SUBMIT         1: a batch job, which starts again and resumes after its time limit or a preemption
WARN           seconds before the time limit at which the training saves and stops (120)
PYTHON         interpreter (.venv/bin/python where there is one, else python)'
source "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"

stopped=75 # exit code of a training that a signal has ended

require_arguments 3 "$@"
require_number WARN "${WARN:-120}" 1 65535
if [[ ${SUBMIT:-} == 1 ]]; then
    describe_job "$1" "$2"
    require_slurm sbatch
    again=(env SUBMIT=2 bash "$tools/slurm_train.sh" "$@")
    exec sbatch "${job[@]}" --requeue --open-mode append --signal "USR1@${WARN:-120}" --wrap "$(printf '%q ' "${again[@]}")"
fi
code=0
SRUN_ARGS="${SRUN_ARGS:-} --signal USR1@${WARN:-120}" run_srun "$1" "$2" train.py "$3" "${@:4}" || code=$?
if [[ $code -eq $stopped && ${SUBMIT:-} == 2 ]]; then
    exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
