"""A rank of test_numerics_check: the outputs of generator and policy, operation by operation.

usage: numerics_worker.py RECIPE [key=value ...]
"""

from __future__ import annotations

import sys

import torch

from tempo_megatron.config import load_config
from tempo_megatron.kernels.operations import Operation, Outputs
from tempo_megatron.training import numerics_check


def main(recipe: str, *overrides: str) -> None:
    config = load_config(recipe, overrides)
    compared = []

    def compare(generator: Outputs, policy: Outputs, tokens: int) -> None:
        assert generator.keys() == policy.keys()
        for key, output in generator.items():
            assert len(output) >= tokens - 1
            read = min(tokens, len(output))
            torch.testing.assert_close(policy[key][:read], output[:read], rtol=1e-3, atol=1e-4, msg=str(key))
        compared.append({operation for _, operation in generator})

    numerics_check.first_difference = compare
    lines = numerics_check.compare_numerics(config)
    # Equal outputs leave the last bits of the log-softmax, which on CPUs the two compute differently.
    assert all("output layer and log-softmax" in line for line in lines), lines
    assert compared and set.union(*compared) >= set(Operation) - {Operation.query_norm, Operation.key_norm}


if __name__ == "__main__":
    main(*sys.argv[1:])
