# What a batch job clears, what it asks Slurm, and what an image is given. slurm/common.sh reads this file, and
# launch/nemo.py puts it into the scripts that NeMo-Run writes.
TRIES=5        # of a question to Slurm
PAUSE=10       # seconds between two tries
MOST_IN_VAIN=3 # times in a row that a job is requeued after an attempt that saved nothing new
RANKS=(--export=ALL --distribution=block,NoPack --cpu-bind=none) # options of srun for ranks, against a site's

# Variables by which srun, squeue and scontrol take options, whoever set them, and those that a launcher has left in the
# environment of sbatch: ranks would take them for their own place.
unset "${!SQUEUE_@}" "${!SCONTROL_@}" "${!TORCHELASTIC_@}" "${!SLURM_CPU_BIND@}" "${!SLURM_MEM_BIND@}" \
    SLURM_EXPORT_ENV SRUN_EXPORT_ENV SLURM_CLUSTERS SLURM_DEBUG SRUN_DEBUG SLURM_DISABLE_STATUS SLURM_DISTRIBUTION \
    SLURM_DIST_PLANESIZE SLURM_EXACT SLURM_EXCLUSIVE SLURM_HINT SLURM_IMMEDIATE SLURM_KILL_BAD_EXIT SLURM_LABELIO \
    SLURM_MPI_TYPE SLURM_MULTI_PROG SLURM_NO_KILL SLURM_NTASKS_PER_CORE SLURM_OPEN_MODE SLURM_OVERCOMMIT SLURM_OVERLAP \
    SLURM_SPREAD_JOB SLURM_STDERRMODE SLURM_STDINMODE SLURM_STDOUTMODE SLURM_THREADS_PER_CORE SLURM_TIMELIMIT SLURM_WAIT \
    SLURM_WHOLE SLURM_WORKING_DIR \
    RANK LOCAL_RANK NODE_RANK GROUP_RANK ROLE_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_WORLD_SIZE ROLE_WORLD_SIZE \
    ROLE_NAME MASTER_ADDR MASTER_PORT TEMPO_NODES TEMPO_DEADLINE
export SLURM_TIME_FORMAT=standard
[ -z "${TEMPO_MASTER_ADDR:-}" ] || export MASTER_ADDR=$TEMPO_MASTER_ADDR
[ -z "${TEMPO_MASTER_PORT:-}" ] || export MASTER_PORT=$TEMPO_MASTER_PORT

# Runs a command until it succeeds, TRIES times at most: a question that failed is not an answer. Prints what it says.
ask() {
    local try said
    for ((try = 1; try <= TRIES; try++)); do
        if said=$(timeout 60 "$@"); then
            echo "$said"
            return 0
        fi
        [ "$try" -eq "$TRIES" ] || sleep "$PAUSE"
    done
    return 1
}

# Prints fields of squeue (its --format) about this job; nothing where they are unknown. An element of an array may have
# the array's id, by which squeue lists all elements: %A tells them apart.
about_job() {
    ask squeue --noheader --array --job "$SLURM_JOB_ID" --format "%A $1" | sed -n "s/^ *$SLURM_JOB_ID  *//p" || true
}

# Prints the second since 1970 at which Slurm ends the job: its start and its time limit, however long the set-up takes.
# Nothing where there is no limit, or it is unknown.
deadline() {
    local end
    end=$(about_job %e)
    [ -z "$end" ] || date --date "$end" +%s 2>/dev/null || true
}

# Directory of this attempt's logs in the run $1.
attempt_of() { echo "$1/logs/$SLURM_JOB_ID/attempt-${SLURM_RESTART_COUNT:-0}"; }

# Begins an attempt of the run $1.
begin_attempt() { mkdir -p "$(attempt_of "$1")" && touch "$(attempt_of "$1")/begun"; }

# Whether this attempt of the run $1 has left a checkpoint.
saved_anything() {
    [ -n "$(find "$1/checkpoints" -mindepth 1 -maxdepth 1 -name 'i*-*' -newer "$(attempt_of "$1")/begun" 2>/dev/null)" ]
}

# Prints how many attempts in a row, up to this one, have the mark $2 in the run $1.
in_a_row() {
    local restarts=${SLURM_RESTART_COUNT:-0} row=0
    while [ -e "$1/logs/$SLURM_JOB_ID/attempt-$((restarts - row))/$2" ]; do
        row=$((row + 1))
    done
    echo "$row"
}

# Prints how many attempts in a row, up to this one, have saved nothing new in the run $1.
attempts_in_vain() {
    saved_anything "$1" || touch "$(attempt_of "$1")/in_vain"
    in_a_row "$1" in_vain
}

# Requeues the job of the run $1 and prints what became of it. One that was canceled stays so. Where Slurm does not say
# whether it was, it is requeued a few times in a row.
requeue_job() {
    local state name described
    read -r state name < <(about_job '%T %i') || true
    [ -n "$name" ] || name=${SLURM_ARRAY_TASK_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
    name=${name:-$SLURM_JOB_ID}
    described=$(ask scontrol show job "$name") || true
    [ -n "$state" ] || state=$(sed -n 's/.*JobState=\([A-Z_]*\).*/\1/p' <<<"$described")
    [ -n "$state" ] || touch "$(attempt_of "$1")/unknown"
    if [ "${state:-RUNNING}" != RUNNING ]; then
        echo "the job is not requeued, as it is $state"
    elif [ "$(in_a_row "$1" unknown)" -gt "$MOST_IN_VAIN" ]; then
        echo "Slurm has not said for $((MOST_IN_VAIN + 1)) attempts whether the job is canceled: submit it again to go on"
    elif [[ $described = *Requeue=0* ]]; then
        echo "the job cannot be requeued, as it has --no-requeue: submit it again to go on"
    elif ask scontrol requeue "$name" >/dev/null; then
        echo "the job is requeued"
    else
        echo "the job could not be requeued: submit it again to go on"
    fi
}

# Prints mounts of an image, HERE:THERE a line, for directories by the names that settings have for them. Links in them
# lead out of them (a hub's cache has such), as names do: what they lead to is there too, where they look for it.
# Fails where a path cannot be said to an image.
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
        linked_from "$real"
        # The image sees the present directory, and links in it as they are.
        [[ $name = "$real" || $name = "$PWD"/* ]] && continue
        echo "$name:$name"
        linked_from "$name"
    done | awk '!seen[$0]++'
}

# Prints a mount for each link in the directory $1 that leads out of it.
linked_from() {
    local link place depth=3
    [ "$1" != "$(realpath "$PWD")" ] || depth=1 # the repository: links in an environment are its own
    while IFS= read -r link; do
        place=$(readlink "$link")
        [[ $place = /* ]] || place=${link%/*}/$place
        place=$(realpath --canonicalize-missing --no-symlinks "$place")
        [[ ! -e $link || $place/ = "$1"/* ]] || echo "$(realpath "$link"):$place"
    done < <(find "$1/" -maxdepth "$depth" -type l 2>/dev/null)
}
