#!/bin/bash
#SBATCH --job-name=tempo_30b_a3b
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
export TEMPO_MODEL=${TEMPO_MODEL:-models/Qwen3-30B-A3B-Base} # Hugging Face directory
export TEMPO_DATA=${TEMPO_DATA:-data}                        # files of `tempo data prepare`
export TEMPO_OUTPUT=${TEMPO_OUTPUT:-runs/qwen3_30b_a3b}      # directory of both runs

source "$SLURM_SUBMIT_DIR/slurm/common.sh" || exit 2 # submit from the repository's directory

train_both qwen3_30b_a3b_math "$@"
