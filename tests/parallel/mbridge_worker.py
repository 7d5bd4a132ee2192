"""A rank of test_mbridge: compares the same models loaded by mbridge and by this project, tensor by tensor.

usage: mbridge_worker.py MODELS TP, where MODELS is a directory of model directories
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig

from tempo_megatron.config import Config, Precision
from tempo_megatron.conversion import decoder, hf_config, hf_files
from tempo_megatron.conversion.mapping import VOCABULARY_MULTIPLE
from tempo_megatron.megatron import cpu, model, topology, weights


class Empty(torch.nn.Module):
    """Parameters with names and shapes but no values, into which mbridge loads instead of a GPTModel."""

    def __init__(self, like: dict[str, Tensor]) -> None:
        super().__init__()
        for name, parameter in like.items():
            *path, last = name.split(".")
            module: torch.nn.Module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, torch.nn.Module())
                module = module.get_submodule(part)
            empty = torch.nn.Parameter(torch.full_like(parameter, torch.nan))
            for attribute in ("tensor_model_parallel", "partition_dim"):
                setattr(empty, attribute, getattr(parameter, attribute, None))
            module.register_parameter(last, empty)
        layers = self.get_submodule("decoder.layers")
        for number, layer in layers.named_children():
            layer.layer_number = int(number) + 1
        self.decoder.layers = torch.nn.ModuleList(layers.children())


def gpt_name(name: str) -> str:
    """Returns the GPTModel name of a canonical name, with norms fused into the projections that follow them."""
    name = re.sub(r"layers\.(\d+)\.", lambda match: f"layers.{int(match[1]) // 2}.", name)
    name = name.replace("input_layernorm.", "self_attention.linear_qkv.layer_norm_")
    return name.replace("pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_").replace("final_norm", "final_layernorm")


def main(models: str, tensor_size: str) -> None:
    config = Config()
    config.model.precision = Precision.fp32
    config.parallel.tensor_model_parallel_size = int(tensor_size)
    place = topology.initialize(config.parallel, seed=0)
    with cpu.accelerator_names():
        from mbridge import AutoBridge

    for directory in sorted(Path(models).iterdir()):
        described = hf_files.read_config(directory)
        settings = hf_config.backbone_settings(described)
        chunks = model.build_model("policy", settings, config, place)
        weights.load_hf_weights(
            chunks, decoder.policy_mappings(settings), hf_files.HfReader(directory), place, critic=False
        )
        ours = {gpt_name(name): parameter for name, parameter in weights.canonical_parameters(chunks).items()}
        mbridge_model = Empty(ours)
        with cpu.accelerator_names(), torch.no_grad():
            bridge = AutoBridge.from_config(
                AutoConfig.from_pretrained(directory),
                dtype=torch.float32,
                make_vocab_size_divisible_by=VOCABULARY_MULTIPLE,
            )
            bridge.vocab_size, bridge.padded_vocab_size = settings.vocab_size, settings.padded_vocab_size
            bridge.load_weights([mbridge_model], str(directory))
        loaded = dict(mbridge_model.named_parameters())
        different = [name for name, tensor in ours.items() if not torch.equal(loaded[name], tensor)]
        assert loaded.keys() == ours.keys() and not different, (directory.name, different)
        print(f"{directory.name}: {len(ours)} tensors equal")


if __name__ == "__main__":
    main(*sys.argv[1:])
