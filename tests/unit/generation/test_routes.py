"""Routes as the engine returns them: one for each token that it read, and none of zeros."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from tempo_megatron.generation.requests import Request, finished_completion
from tempo_megatron.generation.routes import MissingRoutes, read_routes


def output(routes: np.ndarray | None) -> SimpleNamespace:
    """Returns an output of vLLM with three sampled tokens."""
    log_probs = SimpleNamespace(logprobs=[-1.0, -2.0, -3.0])
    return SimpleNamespace(token_ids=[7, 8, 9], logprobs=log_probs, finish_reason="length", routed_experts=routes)


def test_routes_are_those_of_all_tokens_but_the_last() -> None:
    """A prompt of four tokens and a response of three have six routes. Only requests that need them keep them."""
    routes = np.tile(np.array([[0, 3], [5, 0]], dtype=np.uint8), (6, 1, 1))
    request = Request((1, 2, 3, 4), 0, 3, 1.0, 1.0, needs_routes=True)
    assert finished_completion(request, output(routes)).routes is routes
    plain = Request((1, 2, 3, 4), 0, 3, 1.0, 1.0)
    assert finished_completion(plain, output(routes)).routes is None
    for count in (5, 7):
        with pytest.raises(MissingRoutes, match=rf"the experts of {count} tokens, of 6 that it read"):
            read_routes(4, output(np.ones((count, 2, 2), dtype=np.uint8)))
    with pytest.raises(MissingRoutes, match="the experts of 0 tokens, of 6 that it read"):
        read_routes(4, output(None))


def test_zeros_are_no_routes() -> None:
    """Protects from a kernel that chooses experts without the router: vLLM then returns zeros and says nothing."""
    routes = np.ones((6, 2, 2), dtype=np.uint8)
    routes[2] = 0
    with pytest.raises(MissingRoutes, match="no experts for 1 of 6 tokens"):
        read_routes(4, output(routes))
