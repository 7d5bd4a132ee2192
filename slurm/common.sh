# Functions for the other scripts of this directory. They source it from the directory of submission, because Slurm runs
# a copy of them.
#
#   train RECIPE RUN [key=value | FILE.yaml]...    train by the recipe into the directory RUN, or resume there
#   train_both NAME [key=value | FILE.yaml]...     train by recipes/NAME_rlvr.yaml into TEMPO_OUTPUT/rlvr, then by
#                                                  recipes/NAME.yaml into TEMPO_OUTPUT/tempo, from the best checkpoint
#
# An interrupted run is requeued and resumes from its newest checkpoint. A finished run has the file RUN/FINISHED and is
# skipped. RUN/logs/JOB/attempt-K has a log of each rank, and RUN/logs/latest points to the newest attempt.
#
# Environment variables, beside those at the top of the scripts:
#   TEMPO_CONTAINER      image to run in, by pyxis (default: the virtual environment)
#   TEMPO_VENV           virtual environment (.venv)
#   TEMPO_DOCTOR         if set, `tempo doctor` checks the nodes first (preflight.bad_nodes says what a bad node does)
#   TEMPO_MAX_RESTARTS   how often Slurm may start the job again (50)
#   TEMPO_MASTER_ADDR    address at which ranks meet (the first node's name); TEMPO_MASTER_PORT is its port
set -u
cd "$SLURM_SUBMIT_DIR" || exit 2
source tempo_megatron/launch/job.sh || exit 2

INTERRUPTED=75   # exit code of `tempo train` after a signal: it has saved and can be started again
BAD_NODES=69     # exit code of `tempo train` and `tempo doctor` if their checks found that nodes cannot train
BAD_NODES_REASON="these nodes cannot train (sbatch --exclude=NODE leaves one out)"
RESTARTS=${SLURM_RESTART_COUNT:-0}
MAX_RESTARTS=${TEMPO_MAX_RESTARTS:-50}
step=
stop_signal= # the first signal to stop that the script has received

say() { echo "$(date +%FT%T) $SLURM_JOB_NAME $SLURM_JOB_ID attempt $RESTARTS: $*"; }

# The environment of every rank.
[ -n "${TEMPO_CONTAINER:-}" ] || PATH=$(realpath "${TEMPO_VENV:-.venv}")/bin:$PATH
TEMPO_DEADLINE=$(deadline)
export PATH TEMPO_DEADLINE
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

# srun forwards SIGUSR1 to every rank, whichever signal the script received.
signal_ranks() {
    stop_signal=${stop_signal:-$1}
    say "$1: the ranks save and stop"
    [ -z "$step" ] || kill -USR1 "$step"
}
trap 'signal_ranks SIGUSR1' USR1
trap 'signal_ranks SIGTERM' TERM

# Puts srun's options for the image into the array `container`, with mounts of the directories that a run uses. A run
# that resumes from its own checkpoint needs no model, whose directory may have been removed.
container_options() {
    local directories model=()
    [ ! -e "${TEMPO_MODEL:-}" ] || model=("$TEMPO_MODEL")
    directories=$(mounts "$PWD" "${model[@]}" "$TEMPO_DATA" "$TEMPO_OUTPUT") || exit 2
    container=("--container-image=$TEMPO_CONTAINER" "--container-workdir=$PWD" "--container-mounts=${directories//$'\n'/,}")
}

# Runs one rank per task on the nodes in the file $1, with logs in the directory $2. The other arguments are options of
# srun and the command. A signal ends `wait` early, hence the loop.
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
    tail --follow --pid="$step" --sleep-interval=0.1 "$logs/srun.log" &
    local follower=$!
    while kill -0 "$step" 2>/dev/null; do
        wait "$step"
    done
    wait "$follower"
    wait "$step" # returns srun's exit code again
}

# Writes the nodes to train on into the file $1: all nodes, or those that `tempo doctor` finds good. $2 is the run, and
# $3 the directory of logs.
choose_nodes() {
    local nodes=$1 run=$2 logs=$3 code=0
    shift 3
    ask scontrol show hostnames "$SLURM_JOB_NODELIST" >"$nodes.all" ||
        retry "$run" "$logs" 1 "Slurm does not say which nodes these are"
    if [ -z "${TEMPO_DOCTOR:-}" ]; then
        mv "$nodes.all" "$nodes"
        return
    fi
    # srun counts --wait from the first rank that ends, and ranks of a bad node may end at once. So it must be longer
    # than the doctor takes.
    run_ranks "$nodes.all" "$logs/doctor" --no-kill --kill-on-bad-exit=0 --wait=600 \
        python -m tempo_megatron.cli doctor "$@" --json "$logs/doctor.json" --nodes-file "$nodes" || code=$?
    cat "$logs/doctor/rank-000.log"
    if [ -n "$stop_signal" ] || [ ! -s "$nodes" ]; then
        interrupted_by_signal "$logs/doctor" &&
            retry "$run" "$logs/doctor" "$INTERRUPTED" "interrupted while nodes were checked"
        # Any rank's exit code counts: the first rank to fail may be on a bad node, where nothing starts.
        any_exited "$BAD_NODES" "$logs/doctor" && retry "$run" "$logs/doctor" "$BAD_NODES" "$BAD_NODES_REASON"
        say "no verdict on these nodes (exit code $code)"
        exit 1
    fi
}

# Succeeds if every node of the job still starts processes by srun.
nodes_answer() {
    TRIES=3 ask srun "${RANKS[@]}" --overlap --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 true \
        >/dev/null 2>&1
}

# Ends the attempt of the run $1 and requeues the job. $2 is the reason.
requeue() {
    say "$2: $(requeue_job "$1")"
    exit "$INTERRUPTED"
}

# Ends an attempt that failed for a reason which may not occur again, and requeues the job. After a few attempts that
# saved nothing new the job ends with the exit code $3 instead. $1 is the run, $2 the logs, $4 the reason.
retry() {
    local run=$1 logs=$2 code=$3 reason=$4 row
    if ! preempted "$run" "$logs"; then
        row=$(attempts_without_save "$run")
        if [ "$row" -gt "$MAX_WITHOUT_SAVE" ]; then
            say "$reason, and nothing was saved in $row attempts: no more"
            exit "$code"
        fi
        [ "$row" -eq 0 ] || reason+=" (saved nothing new, $row of $MAX_WITHOUT_SAVE)"
    fi
    requeue "$run" "$reason"
}

# Succeeds if Slurm has preempted the job: its SIGTERM came to the script, or only to ranks.
preempted() {
    [ "$stop_signal" != SIGTERM ] || return 0
    case $(first_failure "$2") in
        *": Terminated" | *" exit code 143") ;;
        *" exit code $INTERRUPTED") grep -qs SIGTERM "$1/interrupted" ;;
        *) return 1 ;;
    esac
}

# Prints srun's message about the first rank that failed, such as "srun: error: NODE: tasks 2-3: Terminated".
first_failure() { grep -s -m 1 -E '^srun: error: .*: tasks? [0-9]' "$1/srun.log"; }

# Succeeds if a rank with logs in $2 ended with the exit code $1. srun ends every task when the first one exits, and its
# own exit code is then that of a task that it ended.
any_exited() { grep -q "Exited with exit code $1$" "$2/srun.log"; }

# Succeeds if a signal to stop ended the ranks with logs in $1. The script has passed it on, or it came only to the
# ranks and before they listened for it. srun then ends the other ranks.
interrupted_by_signal() {
    [ -z "$stop_signal" ] || return 0
    case $(first_failure "$1") in
        *": Terminated" | *": User defined signal 1" | *" exit code 143" | *" exit code 138") ;;
        *) return 1 ;;
    esac
}

# Prints the end of the log of the rank that failed first by srun's messages.
show_first_failure() {
    local logs=$1 rank
    rank=$(first_failure "$logs" | sed -E 's/.*: tasks? ([0-9]+).*/\1/')
    [ -n "$rank" ] || return 0
    local file
    file=$(printf '%s/rank-%03d.log' "$logs" "$rank")
    say "rank $rank failed first; the end of $file:"
    tail -n 40 "$file"
}

# Prints the identity of the file summary.json in the run $1, or nothing if it does not exist. Every run that ends
# writes a new file.
summary() { stat --format '%i %y' "$1/summary.json" 2>/dev/null; }

train() {
    local recipe=$1 run=$2 code=0 before
    shift 2
    if [ -e "$run/FINISHED" ]; then
        say "$run is finished (remove $run/FINISHED to go on with it)"
        return
    fi
    [ -z "$stop_signal" ] || requeue "$run" "interrupted between two runs"
    if [ "$RESTARTS" -gt "$MAX_RESTARTS" ]; then
        say "started again $RESTARTS times, more than TEMPO_MAX_RESTARTS=$MAX_RESTARTS: no more"
        exit 1
    fi
    local logs
    logs=$(attempt_directory "$run")
    begin_attempt "$run" || exit 1
    ln -sfn "$SLURM_JOB_ID/attempt-$RESTARTS" "$run/logs/latest"
    say "$recipe into $run on $SLURM_JOB_NODELIST, $SLURM_NTASKS ranks; logs in $logs"
    choose_nodes "$logs/nodes" "$run" "$logs" "$recipe" "run_dir=$run" "$@"
    # An old summary is not removed: the directory may belong to another job that has just ended.
    before=$(summary "$run")
    run_ranks "$logs/nodes" "$logs" --kill-on-bad-exit=1 \
        python -m tempo_megatron.cli train "$recipe" "run_dir=$run" "$@" || code=$?
    if [ "$code" -eq 0 ] && [ "$(summary "$run")" != "$before" ]; then
        say "$run is finished" | tee "$run/FINISHED"
        return
    fi
    # srun can return 0 although a node failed.
    [ "$code" -eq 0 ] && retry "$run" "$logs" 1 "the ranks ended before the run did"
    any_exited "$INTERRUPTED" "$logs" && retry "$run" "$logs" "$INTERRUPTED" "interrupted and saved"
    interrupted_by_signal "$logs" && retry "$run" "$logs" "$INTERRUPTED" "interrupted, exit code $code"
    # If the first rank itself fails in the checks, the others report it as absent with the same exit code.
    if [[ $(first_failure "$logs") = *" exit code $BAD_NODES" ]]; then
        cat "$logs/rank-000.log"
        retry "$run" "$logs" "$BAD_NODES" "$BAD_NODES_REASON"
    fi
    show_first_failure "$logs"
    nodes_answer || retry "$run" "$logs" "$code" "not every node answers"
    say "failed with exit code $code"
    exit "$code"
}

# Copies such as iteration-000003.bak are no checkpoints.
has_checkpoint() { compgen -G "$1/checkpoints/i*-*[0-9]/state.json" >/dev/null; }

# Trains policy and critic by reinforcement learning on labeled questions, then starts TEMPO from both.
#
# Settings reach both runs, except for the second run's method (method=..., a file of recipes/methods) and its start. The
# first run is skipped if the second one has a policy and a critic of its own. It is also skipped if it was removed after
# the second run has saved a checkpoint.
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
