"""Log-probs, entropy and self-certainty over a vocabulary that is split over TP."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.parallel.launcher import run_ranks

WORKER = Path(__file__).with_name("scores_worker.py")


@pytest.mark.parametrize("vocab_size", [21, 11])
def test_scores_and_their_gradients_equal_the_dense_formulas(vocab_size: int, tmp_path: Path) -> None:
    """Two ranks, chunks of three tokens, a temperature, an impossible token, and a padded vocabulary that ends on the
    second rank, or on the first one, so that the second has none. float64 on one process is the reference. A sum over
    ranks counted twice, or not at all, would show."""
    torch.manual_seed(0)
    logits, tokens = 3 * torch.randn(10, 24), torch.randint(0, vocab_size, (10,))
    logits[4, (tokens[4] + 1) % vocab_size] = -1e30
    weights = torch.randn(10)
    inputs = {"logits": logits, "tokens": tokens, "weights": weights, "vocab_size": vocab_size, "chunk": 36}
    torch.save(inputs, tmp_path / "inputs.pt")
    run_ranks(WORKER, 2, tmp_path / "out.pt")
    found = torch.load(tmp_path / "out.pt")

    dense = logits.double().requires_grad_()
    log_p = (dense[:, :vocab_size] / 0.7).log_softmax(-1)
    expected = {
        "log_probs": log_p.gather(-1, tokens[:, None])[:, 0],
        "entropy": -(log_p.exp() * log_p).sum(-1),
        "self_certainty": -log_p.mean(-1) - math.log(vocab_size),
    }
    for name, column in expected.items():
        (gradient,) = torch.autograd.grad((column * weights).sum(), dense, retain_graph=True)
        close = {"rtol": 1e-6, "atol": 3e-6}
        torch.testing.assert_close(found["scores"][name].double(), column.detach(), **close)
        torch.testing.assert_close(found["gradients"][name].double(), gradient, **close)
