# The environment of a batch job, its requests to Slurm, and the mounts of an image. slurm/common.sh sources this file,
# and launch/nemo.py puts it into the scripts that NeMo-Run writes.
TRIES=5            # tries of a request to Slurm
PAUSE=10           # seconds between two tries
MAX_WITHOUT_SAVE=3 # attempts in a row that may save nothing new and still be requeued
# srun's options for ranks, which override defaults of the site.
RANKS=(--export=ALL --distribution=block,NoPack --cpu-bind=none)

# Clears variables that srun, squeue and scontrol read as options, and leftovers of a launcher in the environment of
# sbatch, which ranks would read as their own.
unset "${!SQUEUE_@}" "${!SCONTROL_@}" "${!TORCHELASTIC_@}" "${!SLURM_CPU_BIND@}" "${!SLURM_MEM_BIND@}" \
    SLURM_EXPORT_ENV SRUN_EXPORT_ENV SLURM_CLUSTERS SLURM_DEBUG SRUN_DEBUG SLURM_DISABLE_STATUS SLURM_DISTRIBUTION \
    SLURM_DIST_PLANESIZE SLURM_EXACT SLURM_EXCLUSIVE SLURM_HINT SLURM_IMMEDIATE SLURM_KILL_BAD_EXIT SLURM_LABELIO \
    SLURM_MPI_TYPE SLURM_MULTI_PROG SLURM_NO_KILL SLURM_NTASKS_PER_CORE SLURM_OPEN_MODE SLURM_OVERCOMMIT SLURM_OVERLAP \
    SLURM_SPREAD_JOB SLURM_STDERRMODE SLURM_STDINMODE SLURM_STDOUTMODE SLURM_THREADS_PER_CORE SLURM_TIMELIMIT SLURM_WAIT \
    SLURM_WHOLE SLURM_WORKING_DIR \
    RANK LOCAL_RANK NODE_RANK GROUP_RANK ROLE_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_WORLD_SIZE ROLE_WORLD_SIZE \
    ROLE_NAME MASTER_ADDR MASTER_PORT TEMPO_NODES TEMPO_DEADLINE
export SLURM_TIME_FORMAT=standard
# RANK_ENVIRONMENT of launch/torchrun.py. A value in the environment of sbatch stays.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false} \
    CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}
[ -z "${TEMPO_MASTER_ADDR:-}" ] || export MASTER_ADDR=$TEMPO_MASTER_ADDR
[ -z "${TEMPO_MASTER_PORT:-}" ] || export MASTER_PORT=$TEMPO_MASTER_PORT

# Runs a command until it succeeds, at most TRIES times, and prints its output. A request that failed is no answer.
ask() {
    local try output
    for ((try = 1; try <= TRIES; try++)); do
        if output=$(timeout 60 "$@"); then
            echo "$output"
            return 0
        fi
        [ "$try" -eq "$TRIES" ] || sleep "$PAUSE"
    done
    return 1
}

# Prints fields of this job in the --format of squeue, or nothing if they are unknown. An element of an array may have
# the array's id, by which squeue lists all elements: %A distinguishes them.
job_fields() {
    ask squeue --noheader --array --job "$SLURM_JOB_ID" --format "%A $1" | sed -n "s/^ *$SLURM_JOB_ID  *//p" || true
}

# Prints the time at which Slurm ends the job, in seconds since the epoch. The set-up of the job counts. Prints nothing if
# there is no limit or it is unknown.
deadline() {
    local end
    end=$(job_fields %e)
    [ -z "$end" ] || date --date "$end" +%s 2>/dev/null || true
}

# Prints the directory of this attempt's logs in the run $1.
attempt_directory() { echo "$1/logs/$SLURM_JOB_ID/attempt-${SLURM_RESTART_COUNT:-0}"; }

# Begins an attempt of the run $1.
begin_attempt() { mkdir -p "$(attempt_directory "$1")" && touch "$(attempt_directory "$1")/begun"; }

# Succeeds if this attempt has saved a checkpoint of the run $1.
saved_checkpoint() {
    local begun
    begun=$(attempt_directory "$1")/begun
    [ -n "$(find "$1/checkpoints" -mindepth 1 -maxdepth 1 -name 'i*-*' -newer "$begun" 2>/dev/null)" ]
}

# Prints how many attempts in a row, up to this one, have the marker file $2 in the run $1.
marks_in_a_row() {
    local restarts=${SLURM_RESTART_COUNT:-0} row=0
    while [ -e "$1/logs/$SLURM_JOB_ID/attempt-$((restarts - row))/$2" ]; do
        row=$((row + 1))
    done
    echo "$row"
}

# Prints how many attempts in a row, up to this one, have saved nothing new in the run $1.
attempts_without_save() {
    saved_checkpoint "$1" || touch "$(attempt_directory "$1")/in_vain"
    marks_in_a_row "$1" in_vain
}

# Requeues the job of the run $1 and prints the result. A canceled job is not requeued. If Slurm does not say whether it
# was canceled, it is requeued a few times in a row.
requeue_job() {
    local state name described
    read -r state name < <(job_fields '%T %i') || true
    [ -n "$name" ] || name=${SLURM_ARRAY_TASK_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
    name=${name:-$SLURM_JOB_ID}
    described=$(ask scontrol show job "$name") || true
    [ -n "$state" ] || state=$(sed -n 's/.*JobState=\([A-Z_]*\).*/\1/p' <<<"$described")
    [ -n "$state" ] || touch "$(attempt_directory "$1")/unknown"
    if [ "${state:-RUNNING}" != RUNNING ]; then
        echo "the job is not requeued, as it is $state"
    elif [ "$(marks_in_a_row "$1" unknown)" -gt "$MAX_WITHOUT_SAVE" ]; then
        echo "Slurm has not said for $((MAX_WITHOUT_SAVE + 1)) attempts whether the job is canceled: submit it again to go on"
    elif [[ $described = *Requeue=0* ]]; then
        echo "the job cannot be requeued, as it has --no-requeue: submit it again to go on"
    elif ask scontrol requeue "$name" >/dev/null; then
        echo "the job is requeued"
    else
        echo "the job could not be requeued: submit it again to go on"
    fi
}

# Prints the mounts of an image for these directories, one HOST_PATH:IMAGE_PATH per line, at the paths in the settings.
# The targets of symbolic links in the paths and in the directories (such as a hub's cache) are mounted where the links
# point. Fails for a path that cannot be mounted.
mounts() {
    if [[ $* = *[,:]* ]]; then
        echo "an image cannot be given a path with a comma or a colon: $*" >&2
        return 2
    fi
    local name real
    for name; do
        name=$(realpath --canonicalize-missing --no-symlinks "$name")
        real=$(realpath --canonicalize-missing "$name")
        echo "$real:$real"
        link_mounts "$real"
        # The image has the working directory, with its links as they are.
        [[ $name = "$real" || $name = "$PWD"/* ]] && continue
        echo "$name:$name"
        link_mounts "$name"
    done | awk '!seen[$0]++'
}

# Prints a mount for each link in the directory $1 that points out of it.
link_mounts() {
    local link target depth=3
    [ "$1" != "$(realpath "$PWD")" ] || depth=1 # the repository: the links of a virtual environment stay within it
    while IFS= read -r link; do
        target=$(readlink "$link")
        [[ $target = /* ]] || target=${link%/*}/$target
        target=$(realpath --canonicalize-missing --no-symlinks "$target")
        [[ ! -e $link || $target/ = "$1"/* ]] || echo "$(realpath "$link"):$target"
    done < <(find "$1/" -maxdepth "$depth" -type l 2>/dev/null)
}
