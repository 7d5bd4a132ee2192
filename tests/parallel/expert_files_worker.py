"""The rank of test_expert_generation whose engine reads a model with experts from its files, as `tempo eval` does.

usage: expert_files_worker.py MODEL
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tempo_megatron.config import load_config
from tempo_megatron.conversion import hf_config, hf_files
from tempo_megatron.generation.requests import Request
from tempo_megatron.megatron import topology
from tests.parallel.expert_generation_worker import Routed, check
from tests.parallel.prefix_cache_worker import start_engine


def main(path: str) -> None:
    torch.set_num_threads(1)
    topology.initialize(load_config(None, []).parallel, seed=0)
    generator = start_engine(Path(path), None, returns_routes=True)
    prompts = [tuple(3 + (7 * i + n) % 50 for i in range(9 + n)) for n in range(4)]
    requests = [Request(prompts[n % 4], 1000 + n, 8, 1.0, 1.0, needs_routes=True) for n in range(12)]
    experts = hf_config.backbone_settings(hf_files.read_config(Path(path))).experts
    assert experts
    hf_model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    check(Routed(hf_model, experts.sparse_layers), requests, generator.generate(requests))
    topology.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
