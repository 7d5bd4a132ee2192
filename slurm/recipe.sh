#!/bin/bash
#SBATCH --job-name=tempo
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# Any recipe:   sbatch slurm/recipe.sh RECIPE RUN [key=value | FILE.yaml]...
if [[ $# -lt 2 || $2 = *=* || $2 = *.y?(a)ml ]]; then
    echo "usage: sbatch slurm/recipe.sh RECIPE RUN [key=value | FILE.yaml]...; RUN is the run's directory" >&2
    exit 2
fi
export TEMPO_MODEL=${TEMPO_MODEL:-}   # Hugging Face directory, instead of the recipe's
export TEMPO_DATA=${TEMPO_DATA:-data} # files of `tempo data prepare`
export TEMPO_OUTPUT=$2                # directory of the run

source "$SLURM_SUBMIT_DIR/slurm/common.sh" || exit 2 # submit from the repository's directory

train "$1" "$2" ${TEMPO_MODEL:+model.hf_path="$TEMPO_MODEL"} "${@:3}"
