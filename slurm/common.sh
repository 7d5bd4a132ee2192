# What the scripts beside this one share. They source it where they were submitted, since Slurm runs a copy of them.
#
#   train RECIPE RUN [key=value | FILE.yaml]...    train by the recipe into the directory RUN, or go on with it
#   train_both NAME [key=value | FILE.yaml]...     train by recipes/NAME_rlvr.yaml into TEMPO_OUTPUT/rlvr, then by
#                                                  recipes/NAME.yaml into TEMPO_OUTPUT/tempo, from the best of that
#
# A run that was interrupted is requeued and goes on from its newest checkpoint; one that is finished is skipped, as the
# file RUN/FINISHED says. RUN/logs/JOB/attempt-K has a log of each rank; RUN/logs/latest is the newest of them.
#
# Variables of the environment, beside those at the top of the scripts:
#   TEMPO_CONTAINER      image to run in, by pyxis (none: the virtual environment is used)
#   TEMPO_VENV           virtual environment (.venv)
#   TEMPO_DOCTOR         if set, `tempo doctor` examines the nodes first; preflight.bad_nodes=leave_out trains on the good ones
#   TEMPO_MAX_RESTARTS   times that Slurm may start the job again (50)
set -u
cd "$SLURM_SUBMIT_DIR" || exit 2

INTERRUPTED=75   # exit code of `tempo train` after a signal: saved, and to be started again
BAD_NODES=69     # of `tempo train` and `tempo doctor`, whose checks found that nodes cannot train
MOST_BAD_NODES=3 # times that a job is requeued for them
RESTARTS=${SLURM_RESTART_COUNT:-0}
MAX_RESTARTS=${TEMPO_MAX_RESTARTS:-50}
step=
told=

say() { echo "$(date +%FT%T) $SLURM_JOB_NAME $SLURM_JOB_ID attempt $RESTARTS: $*"; }

# Seconds since 1970 at which Slurm ends the job: its start and its time limit, however long the set-up takes.
# Nothing where there is no limit.
deadline() {
    local end
    end=$(squeue --noheader --job "$SLURM_JOB_ID" --format %e)
    [ -z "$end" ] || date --date "$end" +%s 2>/dev/null
}

state() { squeue --noheader --job "$SLURM_JOB_ID" --format %T; }

# What every rank finds in its environment.
[ -n "${TEMPO_CONTAINER:-}" ] || PATH=$(realpath "${TEMPO_VENV:-.venv}")/bin:$PATH
TEMPO_DEADLINE=$(deadline)
export PATH TEMPO_DEADLINE
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false CUDA_DEVICE_MAX_CONNECTIONS=1

# srun passes SIGUSR1 on to every rank, whichever signal came. Whoever comes second finds the ranks saving.
tell_ranks() {
    told=yes
    say "$1: the ranks save and stop"
    [ -z "$step" ] || kill -USR1 "$step"
}
trap 'tell_ranks SIGUSR1' USR1
trap 'tell_ranks SIGTERM' TERM

# Options of srun for the image, with the directories that a run reads and writes at their own paths.
container_options() {
    local mounts="" directory
    for directory in "$PWD" ${TEMPO_MODEL:+"$TEMPO_MODEL"} "$TEMPO_DATA" "$TEMPO_OUTPUT"; do
        directory=$(realpath --canonicalize-missing --no-symlinks "$directory") # as settings name it
        mounts+="${mounts:+,}$directory:$directory"
    done
    echo "--container-image=$TEMPO_CONTAINER" "--container-workdir=$PWD" "--container-mounts=$mounts"
}

# One rank a task on the nodes of the file $1, with logs in the directory $2; the rest is options of srun and `tempo`'s
# arguments. A signal ends `wait` early, hence the loop.
run_ranks() {
    local nodes=$1 logs=$2 count container=()
    shift 2
    count=$(wc -l <"$nodes")
    [ -z "${TEMPO_CONTAINER:-}" ] || read -ra container < <(container_options)
    mkdir -p "$logs"
    : >"$logs/srun.log"
    TEMPO_NODES=$(paste -sd' ' "$nodes") srun --cpu-bind=none --output="$logs/rank-%3t.log" \
        --nodes="$count" --nodelist="$(paste -sd, "$nodes")" --ntasks=$((SLURM_NTASKS * count / SLURM_NNODES)) \
        "${container[@]}" "$@" 2>"$logs/srun.log" &
    step=$!
    tail --follow --pid="$step" "$logs/srun.log" &
    local follower=$!
    while kill -0 "$step" 2>/dev/null; do
        wait "$step"
    done
    wait "$follower"
    wait "$step" # still gives srun's exit code
}

# The nodes to train on, into the file $1: all, or those that `tempo doctor` finds good.
choose_nodes() {
    local nodes=$1 logs=$2 code=0
    shift 2
    scontrol show hostnames "$SLURM_JOB_NODELIST" >"$nodes.all"
    if [ -z "${TEMPO_DOCTOR:-}" ]; then
        mv "$nodes.all" "$nodes"
        return
    fi
    # srun counts --wait from the first rank that ends, as those of a bad node may at once: longer than the doctor takes.
    run_ranks "$nodes.all" "$logs/doctor" --no-kill --kill-on-bad-exit=0 --wait=600 \
        python -m tempo_megatron.cli doctor "$@" --json "$logs/doctor.json" --nodes-file "$nodes" || code=$?
    cat "$logs/doctor/rank-000.log"
    if [ -n "$told" ] || [ ! -s "$nodes" ]; then
        interrupted "$logs/doctor" && requeue "interrupted while nodes were examined"
        # Of any rank: the first to fail may be a bad node's, where nothing starts.
        any_exited "$BAD_NODES" "$logs/doctor" && other_nodes "$logs"
        say "no verdict on these nodes (exit code $code)"
        exit 1
    fi
}

# Whether every node of the job still starts processes.
nodes_answer() {
    timeout 60 srun --overlap --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 true >/dev/null 2>&1
}

requeue() {
    if [ "$(state)" = RUNNING ]; then
        say "$1: the job is requeued"
        scontrol requeue "$SLURM_JOB_ID"
    else
        say "$1" # who cancelled the job does not want it back
    fi
    exit "$INTERRUPTED"
}

# Ends an attempt of the logs $1 whose nodes cannot train: Slurm may give others, a few times.
other_nodes() {
    touch "$1/bad_nodes"
    local times=("$1"/../attempt-*/bad_nodes)
    [ "${#times[@]}" -gt "$MOST_BAD_NODES" ] || requeue "these nodes cannot train (${#times[@]} of $MOST_BAD_NODES)"
    say "these nodes cannot train either: no more (sbatch --exclude=NODE leaves one out)"
    exit "$BAD_NODES"
}

# What srun said of the first rank that failed: "srun: error: NODE: tasks 2-3: Terminated".
first_failure() { grep -m 1 -E '^srun: error: .*: tasks? [0-9]' "$1/srun.log"; }

# Whether a rank with logs in $2 ended with the exit code $1. srun ends every task when the first exits, and its own code
# is then that of a task that it ended.
any_exited() { grep -q "Exited with exit code $1$" "$2/srun.log"; }

# Whether a signal to stop ended the ranks with logs in $1: one that the script passed on, or one that came to them alone
# and before they listened for it. srun then ends the others.
interrupted() {
    [ -z "$told" ] || return 0
    case $(first_failure "$1") in
        *": Terminated" | *": User defined signal 1" | *" exit code 143" | *" exit code 138") ;;
        *) return 1 ;;
    esac
}

# The end of the log of the rank that srun saw failing first.
blame() {
    local logs=$1 rank
    rank=$(first_failure "$logs" | sed -E 's/.*: tasks? ([0-9]+).*/\1/')
    [ -n "$rank" ] || return 0
    local file
    file=$(printf '%s/rank-%03d.log' "$logs" "$rank")
    say "rank $rank failed first; the end of $file:"
    tail -n 40 "$file"
}

# Which file RUN/summary.json is, for $1=RUN: every run that ends makes a new one. Nothing where there is none.
summary() { stat --format '%i %y' "$1/summary.json" 2>/dev/null; }

train() {
    local recipe=$1 run=$2 code=0 before
    shift 2
    if [ -e "$run/FINISHED" ]; then
        say "$run is finished (remove $run/FINISHED to go on with it)"
        return
    fi
    [ -z "$told" ] || requeue "interrupted between two runs"
    if [ "$RESTARTS" -gt "$MAX_RESTARTS" ]; then
        say "started again $RESTARTS times, more than TEMPO_MAX_RESTARTS=$MAX_RESTARTS: no more"
        exit 1
    fi
    local logs=$run/logs/$SLURM_JOB_ID/attempt-$RESTARTS
    mkdir -p "$logs" || exit 1
    ln -sfn "$SLURM_JOB_ID/attempt-$RESTARTS" "$run/logs/latest"
    say "$recipe into $run on $SLURM_JOB_NODELIST, $SLURM_NTASKS ranks; logs in $logs"
    choose_nodes "$logs/nodes" "$logs" "$recipe" "run_dir=$run" "$@"
    # It stays there until the ranks make another: the directory may turn out to be another job's, which has just ended.
    before=$(summary "$run")
    run_ranks "$logs/nodes" "$logs" --kill-on-bad-exit=1 \
        python -m tempo_megatron.cli train "$recipe" "run_dir=$run" "$@" || code=$?
    if [ "$code" -eq 0 ] && [ "$(summary "$run")" != "$before" ]; then
        say "$run is finished" | tee "$run/FINISHED"
        return
    fi
    # srun can return 0 after a node failed.
    [ "$code" -eq 0 ] && requeue "the ranks ended before the run did"
    any_exited "$INTERRUPTED" "$logs" && requeue "interrupted and saved"
    interrupted "$logs" && requeue "interrupted, exit code $code"
    # Where the first rank fails by itself in the checks, others find it absent.
    if [[ $(first_failure "$logs") = *" exit code $BAD_NODES" ]]; then
        cat "$logs/rank-000.log"
        other_nodes "$logs"
    fi
    blame "$logs"
    nodes_answer || requeue "not every node answers"
    say "failed with exit code $code"
    exit "$code"
}

has_checkpoint() { compgen -G "$1/checkpoints/i*/state.json" >/dev/null; }

# Reinforcement learning on labelled questions trains policy and critic; TEMPO starts from both. Settings are for both
# runs, but those that say how the second learns (method=..., a file of recipes/methods) and what it starts from: with a
# policy and a critic of its own it has no need of the first, nor once it has a checkpoint, after which the first may have
# been removed.
train_both() {
    local name=$1 start=$TEMPO_OUTPUT/rlvr item both=() second=() starts=
    shift
    for item; do
        case $item in
            method=* | recipes/methods/* | */recipes/methods/*) second+=("$item") ;;
            policy.checkpoint=* | critic.checkpoint=*) second+=("$item") starts+="${item%%.*} " ;;
            *) both+=("$item") ;;
        esac
    done
    [[ $starts = *policy* && $starts = *critic* ]] || { [ ! -e "$start" ] && has_checkpoint "$TEMPO_OUTPUT/tempo"; } ||
        train "recipes/${name}_rlvr.yaml" "$start" model.hf_path="$TEMPO_MODEL" "${both[@]}"
    train "recipes/$name.yaml" "$TEMPO_OUTPUT/tempo" model.hf_path="$TEMPO_MODEL" \
        policy.checkpoint="$start/checkpoints/best" critic.checkpoint="$start/checkpoints/best" "${both[@]}" "${second[@]}"
}
