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
#   TEMPO_MASTER_ADDR    address at which ranks meet (the first node's name); TEMPO_MASTER_PORT, its port
set -u
cd "$SLURM_SUBMIT_DIR" || exit 2
source tempo_megatron/launch/job.sh || exit 2

INTERRUPTED=75   # exit code of `tempo train` after a signal: saved, and to be started again
BAD_NODES=69     # of `tempo train` and `tempo doctor`, whose checks found that nodes cannot train
CANNOT_TRAIN="these nodes cannot train (sbatch --exclude=NODE leaves one out)"
RESTARTS=${SLURM_RESTART_COUNT:-0}
MAX_RESTARTS=${TEMPO_MAX_RESTARTS:-50}
step=
told= # the signal to stop that the script has passed on

say() { echo "$(date +%FT%T) $SLURM_JOB_NAME $SLURM_JOB_ID attempt $RESTARTS: $*"; }

# What every rank finds in its environment.
[ -n "${TEMPO_CONTAINER:-}" ] || PATH=$(realpath "${TEMPO_VENV:-.venv}")/bin:$PATH
TEMPO_DEADLINE=$(deadline)
export PATH TEMPO_DEADLINE
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false CUDA_DEVICE_MAX_CONNECTIONS=1

# srun passes SIGUSR1 on to every rank, whichever signal came. Whoever comes second finds the ranks saving.
tell_ranks() {
    told=${told:-$1}
    say "$1: the ranks save and stop"
    [ -z "$step" ] || kill -USR1 "$step"
}
trap 'tell_ranks SIGUSR1' USR1
trap 'tell_ranks SIGTERM' TERM

# Puts options of srun for the image into the array `container`, with the directories that a run reads and writes. A run
# that goes on from its own checkpoint needs no model, which may be gone.
container_options() {
    local directories model=()
    [ ! -e "${TEMPO_MODEL:-}" ] || model=("$TEMPO_MODEL")
    directories=$(mounts "$PWD" "${model[@]}" "$TEMPO_DATA" "$TEMPO_OUTPUT") || exit 2
    container=("--container-image=$TEMPO_CONTAINER" "--container-workdir=$PWD" "--container-mounts=${directories//$'\n'/,}")
}

# One rank a task on the nodes of the file $1, with logs in the directory $2; the rest is options of srun and `tempo`'s
# arguments. A signal ends `wait` early, hence the loop.
run_ranks() {
    local nodes=$1 logs=$2 count container=()
    shift 2
    count=$(wc -l <"$nodes")
    [ -z "${TEMPO_CONTAINER:-}" ] || container_options
    mkdir -p "$logs"
    : >"$logs/srun.log"
    TEMPO_NODES=$(paste -sd' ' "$nodes") srun "${RANKS[@]}" --output="$logs/rank-%3t.log" \
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

# The nodes to train on, into the file $1: all, or those that `tempo doctor` finds good. $2 is the run, $3 the directory
# of logs.
choose_nodes() {
    local nodes=$1 run=$2 logs=$3 code=0
    shift 3
    ask scontrol show hostnames "$SLURM_JOB_NODELIST" >"$nodes.all" ||
        again "$run" "$logs" 1 "Slurm does not say which nodes these are"
    if [ -z "${TEMPO_DOCTOR:-}" ]; then
        mv "$nodes.all" "$nodes"
        return
    fi
    # srun counts --wait from the first rank that ends, as those of a bad node may at once: longer than the doctor takes.
    run_ranks "$nodes.all" "$logs/doctor" --no-kill --kill-on-bad-exit=0 --wait=600 \
        python -m tempo_megatron.cli doctor "$@" --json "$logs/doctor.json" --nodes-file "$nodes" || code=$?
    cat "$logs/doctor/rank-000.log"
    if [ -n "$told" ] || [ ! -s "$nodes" ]; then
        interrupted "$logs/doctor" && again "$run" "$logs/doctor" "$INTERRUPTED" "interrupted while nodes were examined"
        # Of any rank: the first to fail may be a bad node's, where nothing starts.
        any_exited "$BAD_NODES" "$logs/doctor" && again "$run" "$logs/doctor" "$BAD_NODES" "$CANNOT_TRAIN"
        say "no verdict on these nodes (exit code $code)"
        exit 1
    fi
}

# Whether every node of the job still starts processes, as far as srun can ask it.
nodes_answer() {
    TRIES=3 ask srun "${RANKS[@]}" --overlap --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 true \
        >/dev/null 2>&1
}

# Ends an attempt of the run $1; $2 is the reason.
requeue() {
    say "$2: $(requeue_job "$1")"
    exit "$INTERRUPTED"
}

# Ends an attempt, of the run $1 and the logs $2, that another one might mend. What fails whenever it is tried does not
# go on for ever: after a few attempts that saved nothing new the job ends with the exit code $3. $4 is the reason.
again() {
    local run=$1 logs=$2 code=$3 reason=$4 row
    if ! preempted "$run" "$logs"; then
        row=$(attempts_in_vain "$run")
        if [ "$row" -gt "$MOST_IN_VAIN" ]; then
            say "$reason, and nothing was saved in $row attempts: no more"
            exit "$code"
        fi
        [ "$row" -eq 0 ] || reason+=" (saved nothing new, $row of $MOST_IN_VAIN)"
    fi
    requeue "$run" "$reason"
}

# Whether Slurm has taken the nodes away: its SIGTERM came to the script, or to ranks alone.
preempted() {
    [ "$told" != SIGTERM ] || return 0
    case $(first_failure "$2") in
        *": Terminated" | *" exit code 143") ;;
        *" exit code $INTERRUPTED") grep -qs SIGTERM "$1/interrupted" ;;
        *) return 1 ;;
    esac
}

# What srun said of the first rank that failed: "srun: error: NODE: tasks 2-3: Terminated".
first_failure() { grep -s -m 1 -E '^srun: error: .*: tasks? [0-9]' "$1/srun.log"; }

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
    [ -z "$told" ] || requeue "$run" "interrupted between two runs"
    if [ "$RESTARTS" -gt "$MAX_RESTARTS" ]; then
        say "started again $RESTARTS times, more than TEMPO_MAX_RESTARTS=$MAX_RESTARTS: no more"
        exit 1
    fi
    local logs
    logs=$(attempt_of "$run")
    begin_attempt "$run" || exit 1
    ln -sfn "$SLURM_JOB_ID/attempt-$RESTARTS" "$run/logs/latest"
    say "$recipe into $run on $SLURM_JOB_NODELIST, $SLURM_NTASKS ranks; logs in $logs"
    choose_nodes "$logs/nodes" "$run" "$logs" "$recipe" "run_dir=$run" "$@"
    # It stays there until the ranks make another: the directory may turn out to be another job's, which has just ended.
    before=$(summary "$run")
    run_ranks "$logs/nodes" "$logs" --kill-on-bad-exit=1 \
        python -m tempo_megatron.cli train "$recipe" "run_dir=$run" "$@" || code=$?
    if [ "$code" -eq 0 ] && [ "$(summary "$run")" != "$before" ]; then
        say "$run is finished" | tee "$run/FINISHED"
        return
    fi
    # srun can return 0 after a node failed.
    [ "$code" -eq 0 ] && again "$run" "$logs" 1 "the ranks ended before the run did"
    any_exited "$INTERRUPTED" "$logs" && again "$run" "$logs" "$INTERRUPTED" "interrupted and saved"
    interrupted "$logs" && again "$run" "$logs" "$INTERRUPTED" "interrupted, exit code $code"
    # Where the first rank fails by itself in the checks, others find it absent.
    if [[ $(first_failure "$logs") = *" exit code $BAD_NODES" ]]; then
        cat "$logs/rank-000.log"
        again "$run" "$logs" "$BAD_NODES" "$CANNOT_TRAIN"
    fi
    blame "$logs"
    nodes_answer || again "$run" "$logs" "$code" "not every node answers"
    say "failed with exit code $code"
    exit "$code"
}

# Copies beside the checkpoints (iteration-000003.bak) are none.
has_checkpoint() { compgen -G "$1/checkpoints/i*-*[0-9]/state.json" >/dev/null; }

# Reinforcement learning on labeled questions trains policy and critic; TEMPO starts from both. Settings are for both
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
