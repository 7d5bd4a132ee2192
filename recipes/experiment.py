"""Submits a recipe as a NeMo-Run experiment on Slurm, as `tempo launch` does. Change it as you like.

usage: python recipes/experiment.py RECIPE [key=value | FILE.yaml]...
"""

import sys
from pathlib import Path

from tempo_megatron.config import load_config
from tempo_megatron.launch.experiment import build_tasks
from tempo_megatron.launch.nemo import Cluster, slurm_experiment, submit


def main(recipe: str, *overrides: str) -> None:
    cluster = Cluster(nodes=1, tasks_per_node=8, gpus_per_node=8, time="24:00:00")
    run = Path(load_config(recipe, overrides).run_dir)
    experiment = slurm_experiment("tempo", build_tasks(recipe, overrides), cluster, run)
    for name, job in submit(experiment).items():
        print(f"{name}: job {job}")


if __name__ == "__main__":
    main(*sys.argv[1:])
