# What the launch scripts share: checks of arguments and environment, and the two commands. Sourced, with $usage set.

tools=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python}
if [[ -z ${PYTHON:-} && -x $tools/../.venv/bin/python ]]; then
    python=$tools/../.venv/bin/python # as in the Makefile
fi

fail() {
    printf 'error: %s\n\n%s\n' "$1" "$usage" >&2
    exit 2
}

# require_arguments NUMBER ARGUMENT...: NUMBER of them, then options
require_arguments() {
    local number=$1
    shift
    if [[ ${1:-} == -h || ${1:-} == --help ]]; then
        printf '%s\n' "$usage"
        exit 0
    fi
    [[ $# -ge $number ]] || fail "$number arguments are needed, $# came."
    shift "$number"
    [[ $# -eq 0 || $1 == -* ]] || fail "options start with a dash; got '$1'."
}

# require_number NAME VALUE LEAST [MOST]
require_number() {
    local range="$3 or more"
    [[ -z ${4:-} ]] || range="$3 to $4"
    [[ $2 =~ ^(0|[1-9][0-9]{0,5})$ && $2 -ge $3 && $2 -le ${4:-999999} ]] ||
        fail "$1 must be a whole number, $range; got '$2'."
}

# run_torchrun GPUS SCRIPT ARGUMENT...
run_torchrun() {
    local gpus=$1 script=$2 nodes=${NNODES:-1} rendezvous
    shift 2
    require_number GPUS "$gpus" 1
    require_number NNODES "$nodes" 1
    command -v "$python" >/dev/null || fail "there is no $python; set PYTHON to an interpreter."
    [[ -z ${PORT:-} ]] || require_number PORT "$PORT" 1 65535
    if [[ $nodes -gt 1 ]]; then
        [[ -n ${MASTER_ADDR:-} ]] || fail "NNODES=$nodes needs MASTER_ADDR, the address of the machine with NODE_RANK=0."
        require_number NODE_RANK "${NODE_RANK:-}" 0
        [[ $NODE_RANK -lt $nodes ]] || fail "NODE_RANK must be less than NNODES=$nodes; got '$NODE_RANK'."
        rendezvous=(--nnodes "$nodes" --node-rank "$NODE_RANK")
        rendezvous+=(--master-addr "$MASTER_ADDR" --master-port "${PORT:-29500}")
    elif [[ -n ${PORT:-} ]]; then
        rendezvous=(--master-addr 127.0.0.1 --master-port "$PORT")
    else
        rendezvous=(--standalone) # on a free port, so that several runs share a machine
    fi
    if [[ -n ${MAX_RESTARTS:-} ]]; then
        require_number MAX_RESTARTS "$MAX_RESTARTS" 0
        rendezvous+=(--max-restarts "$MAX_RESTARTS")
    fi
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # torchrun's default, without its warning
    export MKL_NUM_THREADS=${MKL_NUM_THREADS:-$OMP_NUM_THREADS} # MMEngine's, likewise
    exec "$python" "$tools/torchrun.py" "${rendezvous[@]}" --nproc-per-node "$gpus" \
        "$tools/$script" "$@" --launcher pytorch
}

# The options of a Slurm job, in the array $job, for PARTITION JOB_NAME and what the environment says.
describe_job() {
    local gpus=${GPUS:-8} gpus_per_node cpus_per_task=${CPUS_PER_TASK:-5} words
    require_number GPUS "$gpus" 1
    gpus_per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
    require_number GPUS_PER_NODE "$gpus_per_node" 1
    require_number CPUS_PER_TASK "$cpus_per_task" 1
    read -ra words <<<"${SRUN_ARGS:-}"
    job=(--partition "$1" --job-name "$2" --gres "gpu:$gpus_per_node" --ntasks "$gpus" --ntasks-per-node "$gpus_per_node"
        --cpus-per-task "$cpus_per_task" ${words[@]+"${words[@]}"})
}

# require_slurm PROGRAM
require_slurm() {
    command -v "$1" >/dev/null ||
        fail "there is no $1 here. Without Slurm use tools/dist_train.sh and tools/dist_test.sh."
}

# run_srun PARTITION JOB_NAME SCRIPT ARGUMENT...: returns the exit code
run_srun() {
    local script=$3
    describe_job "$1" "$2"
    if [[ -n ${PORT:-} ]]; then
        require_number PORT "$PORT" 1 65535
        export MASTER_PORT=$PORT # which MMEngine reads, in the environment that srun hands on
    fi
    require_slurm srun
    # one failed process ends the others, which would wait for it
    srun "${job[@]}" --kill-on-bad-exit=1 "$python" -u "$tools/$script" "${@:4}" --launcher slurm
}
