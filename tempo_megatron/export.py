"""The policy as a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist

from checkpoints_convert import hf_files
from checkpoints_convert.hf_files import Description
from checkpoints_convert.rows import whole
from tempo_megatron.megatron.offload import Kind
from tempo_megatron.models import Models


def export_policy(models: Models, hf_path: Path, directory: Path) -> None:
    """Write the policy, with all that stands beside the weights at `hf_path`: one rank writes tensors as they are
    gathered. No model learns after this. Collective."""
    # For good: NumPy, which writes a CPU's tensors, makes their storage one that cannot be resized.
    models.policy.offloader.wake(Kind.weights)
    tensors = models.policy_tensors()
    if dist.get_rank() > 0:
        for _ in tensors:
            pass
        return
    dtype = next(models.policy.module.parameters()).dtype
    described = {
        name: Description(shape, dtype)
        for entry in models.entries
        for name, shape in zip(entry.hf_names, entry.hf_shapes(), strict=True)
    }
    with hf_files.written_aside(directory) as aside:
        hf_files.copy_side_files(hf_path, aside)
        hf_files.write_config(aside, hf_files.with_dtype(hf_files.read_config(aside), {dtype}))
        hf_files.write_tensors(aside, described, whole(tensors))
