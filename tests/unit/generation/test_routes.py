"""Routes as the engine returns them: one for each token that it read, and none of zeros."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tempo_megatron.conversion.mapping import ExpertSettings
from tempo_megatron.generation.requests import Request, finished_completion
from tempo_megatron.generation.routes import MissingRoutes, read_routes

EXPERTS = ExpertSettings(
    num_experts=6, experts_per_token=2, ffn_hidden_size=8, weights_sum_to_one=True, sparse_layers=(True, True)
)


def output(routes: np.ndarray | None) -> SimpleNamespace:
    """Returns an output of vLLM with three sampled tokens."""
    log_probs = SimpleNamespace(logprobs=[-1.0, -2.0, -3.0])
    return SimpleNamespace(token_ids=[7, 8, 9], logprobs=log_probs, finish_reason="length", routed_experts=routes)


def test_routes_are_those_of_all_tokens_but_the_last() -> None:
    """A prompt of four tokens and a response of three have six routes. Only requests that need them keep them."""
    routes = np.tile(np.array([[0, 3], [5, 0]], dtype=np.uint8), (6, 1, 1))
    request = Request((1, 2, 3, 4), 0, 3, 1.0, 1.0, needs_routes=True)
    assert finished_completion(request, output(routes), EXPERTS).routes is routes
    plain = Request((1, 2, 3, 4), 0, 3, 1.0, 1.0)
    assert finished_completion(plain, output(routes), EXPERTS).routes is None
    for count in (5, 7):
        with pytest.raises(MissingRoutes, match=rf"the experts of {count} tokens, of 6 that it read"):
            read_routes(4, output(np.ones((count, 2, 2), dtype=np.uint8)), EXPERTS)
    with pytest.raises(MissingRoutes, match="the experts of 0 tokens, of 6 that it read"):
        read_routes(4, output(None), EXPERTS)


def test_a_request_for_routes_needs_an_engine_that_returns_them() -> None:
    """Otherwise a rollout would train without routes, and nobody would know."""
    request = Request((1, 2, 3, 4), 0, 3, 1.0, 1.0, needs_routes=True)
    with pytest.raises(MissingRoutes, match="the engine was not started to return them"):
        finished_completion(request, output(None), None)


@pytest.mark.parametrize("route", [[0, 0], [3, 3], [2, 6]])
def test_a_token_has_different_experts_of_the_model_in_each_sparse_layer(route: list[int]) -> None:
    """Protects from a kernel that chooses experts without the router: vLLM then returns zeros and says nothing. One
    layer of a token is enough. The dense layer has zeros by right."""
    routes = np.tile(np.array([[0, 0], [0, 5], [4, 1]], dtype=np.uint8), (6, 1, 1))
    experts = replace(EXPERTS, sparse_layers=(False, True, True))
    assert read_routes(4, output(routes), experts) is routes
    routes[2, 1] = route
    with pytest.raises(MissingRoutes, match="no 2 different experts of 6 for 1 of 6 tokens"):
        read_routes(4, output(routes), experts)


def test_the_only_expert_of_a_token_may_be_the_first() -> None:
    """With one expert per token zeros are routes like others."""
    experts = replace(EXPERTS, experts_per_token=1)
    routes = np.zeros((6, 2, 1), dtype=np.uint8)
    assert read_routes(4, output(routes), experts) is routes
    routes[5, 0] = 6
    with pytest.raises(MissingRoutes, match="for 1 of 6 tokens"):
        read_routes(4, output(routes), experts)
