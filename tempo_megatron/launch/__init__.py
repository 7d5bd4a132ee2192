"""Starting ranks: torchrun on this machine, srun's tasks, jobs by NeMo-Run."""
