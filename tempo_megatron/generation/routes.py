"""Routes: the experts that the generator chose for each token, as its engine returns them.

A response of g tokens to a prompt of p has routes [p + g - 1, layers, experts per token], uint8 up to 256 experts and
uint16 above. Row t is about token t, which the engine read to sample token t + 1. The last token was never read.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tempo_megatron.conversion.mapping import ExpertSettings

_CHECK_TOKENS = 5


class MissingRoutes(RuntimeError):
    """The engine does not return the experts that it chose."""


def read_routes(prompt_tokens: int, output: Any, experts: ExpertSettings) -> np.ndarray:
    """Returns the routes of a finished output of vLLM. Raises MissingRoutes where tokens have none.

    vLLM returns zeros where a kernel chooses experts without the router. The experts of a token differ, so zeros are no
    routes where a token has several experts. Dense layers have no routes, and their entries are ignored.
    """
    routes, expected = output.routed_experts, prompt_tokens + len(output.token_ids) - 1
    if routes is None or len(routes) != expected:
        returned = 0 if routes is None else len(routes)
        raise MissingRoutes(f"vLLM returned the experts of {returned} tokens, of {expected} that it read")
    sparse = np.sort(routes[:, np.array(experts.sparse_layers)], -1)  # [tokens, sparse layers, experts per token]
    is_valid = (sparse[..., 1:] != sparse[..., :-1]).all(-1) & (sparse[..., -1] < experts.num_experts)
    if missing := int((~is_valid.all(1)).sum()):
        raise MissingRoutes(
            f"vLLM returned no {experts.experts_per_token} different experts of {experts.num_experts} for {missing} of "
            f"{expected} tokens: its kernel of experts chooses them without the router; set policy.router_replay to "
            "none or old_log_probs"
        )
    return routes  # type: ignore[no-any-return]


def check_routes(llm: Any, experts: ExpertSettings) -> None:
    """Raises MissingRoutes unless the engine returns the experts that it chooses. It samples two tokens."""
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=2, seed=0, detokenize=False, ignore_eos=True)
    prompt = {"prompt_token_ids": list(range(_CHECK_TOKENS))}
    (response,) = llm.generate([prompt], params, use_tqdm=False)
    read_routes(_CHECK_TOKENS, response.outputs[0], experts)
