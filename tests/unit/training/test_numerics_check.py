"""Where generator and policy first differ."""

from __future__ import annotations

import torch

from tempo_megatron.kernels.operations import Operation, Outputs
from tempo_megatron.training.numerics_check import first_difference


def outputs(tokens: int) -> Outputs:
    random = torch.Generator().manual_seed(0)
    keys = [
        (0, Operation.embedding),
        *((layer, each) for layer in (0, 1) for each in (Operation.attention, Operation.down)),
    ]
    return {key: torch.randn(8, 4, generator=random)[:tokens] for key in keys}


def test_equal_outputs_have_no_difference_whatever_the_padding_holds() -> None:
    """The generator does not read the last token, and the policy pads its micro-batch."""
    generator, policy = outputs(4), outputs(8)
    policy[1, Operation.down][5:] += 1
    assert first_difference(generator, policy, 5) is None


def test_the_first_operation_of_a_forward_pass_is_named_not_the_first_token() -> None:
    """A later operation differs for every token that the first one changed, and perhaps for earlier ones."""
    generator, policy = outputs(6), outputs(8)
    policy[0, Operation.down][4, 2] += 1
    policy[1, Operation.attention][1:] += 1
    difference = first_difference(generator, policy, 6)
    assert difference is not None
    assert (difference.layer, difference.operation, difference.token) == (0, "product after SwiGLU", 4)
    assert (difference.entries, difference.width) == (1, 4)
    assert difference.policy == difference.generator + 1


def test_operations_that_only_one_has_are_left_out() -> None:
    """The default's layers fuse norms, so that these have no output."""
    generator, policy = outputs(6), outputs(6)
    del policy[0, Operation.attention]
    policy[1, Operation.attention][3] += 1
    difference = first_difference(generator, policy, 6)
    assert difference is not None and (difference.layer, difference.token) == (1, 3)
