"""Log-probs, entropy and self-certainty over a vocabulary split over TP."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.parallel.launcher import run_ranks

WORKER = Path(__file__).with_name("scores_worker.py")


@pytest.mark.parametrize(("vocab_size", "dtype"), [(21, torch.float32), (11, torch.float32), (21, torch.bfloat16)])
def test_scores_and_their_gradients_equal_the_dense_formulas(
    vocab_size: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    """The reference is float64 on one process. Two ranks score chunks of three tokens and a last one of four, with a
    temperature, an impossible token, and a padded vocabulary. The vocabulary ends on the second rank, or on
    the first one so that the second has none. A sum over ranks that is counted twice or missing would fail. Scores of
    a bf16 model are as exact as in fp32, with logits of up to 60, which bf16 rounds to quarters."""
    torch.manual_seed(0)
    hidden, output_layer = 3 * torch.randn(10, 6), 3 * torch.randn(24, 6)
    tokens, upstream = torch.randint(0, vocab_size, (10,)), torch.randn(10)
    impossible = (tokens[4] + 1) % vocab_size
    hidden[:, 5], output_layer[:, 5] = 0, 0
    hidden[4, 5], output_layer[impossible, 5] = 1e15, -1e15
    hidden, output_layer = hidden.to(dtype), output_layer.to(dtype)
    inputs = {"hidden": hidden, "output_layer": output_layer, "tokens": tokens, "upstream": upstream}
    torch.save(inputs | {"vocab_size": vocab_size, "chunk": 36}, tmp_path / "inputs.pt")
    run_ranks(WORKER, 2, tmp_path / "out.pt")
    actual = torch.load(tmp_path / "out.pt")

    leaves = [hidden.double().requires_grad_(), output_layer.double().requires_grad_()]
    logits = leaves[0] @ leaves[1].t()
    assert logits[logits > -1e20].abs().max() > 32
    log_p = (logits[:, :vocab_size] / 0.7).log_softmax(-1)
    expected = {
        "log_probs": log_p.gather(-1, tokens[:, None])[:, 0],
        "entropy": -(log_p.exp() * log_p).sum(-1),
        "self_certainty": -log_p.mean(-1) - math.log(vocab_size),
    }
    # Exact numerics gather the logits and take the softmax of whole rows.
    exact = logits[:, :vocab_size].log_softmax(-1).gather(-1, tokens[:, None])[:, 0].detach()
    torch.testing.assert_close(actual["exact"].double(), exact, rtol=1e-6, atol=1e-5)
    close = {"rtol": 1e-5, "atol": 3e-5} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 5e-2}
    for name, column in expected.items():
        torch.testing.assert_close(actual["scores"][name].double(), column.detach(), rtol=1e-6, atol=1e-5)
        gradients = torch.autograd.grad((column * upstream).sum(), leaves, retain_graph=True)
        for input_name, gradient in zip(("hidden", "weight"), gradients, strict=True):
            # The column of the impossible token is left out: its gradient is 1e15 times 0.
            torch.testing.assert_close(actual["gradients"][name][input_name].double()[:, :5], gradient[:, :5], **close)
