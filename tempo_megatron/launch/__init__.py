"""Starts the ranks of a run.

- `torchrun`: ranks of this machine, under torchrun
- `local`: ranks of this machine, each with its own exit code
- `slurm`: joins the ranks that `srun` started
- `command`, `experiment`, `nemo`: `tempo launch`, a recipe as a NeMo-Run experiment
- `job`, `job.sh`: what jobs of `tempo launch` and of the sbatch scripts share
- `replay`: training on the rollouts that a run kept
"""
