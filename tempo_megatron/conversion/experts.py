"""The experts of a layer: the settings of a config.json, and the names of tensors that join all experts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tempo_megatron.conversion.mapping import ExpertSettings

NUM_EXPERTS = ("num_experts", "num_local_experts")
"""Two spellings of one setting. Transformers reads both."""
_EXPERTS_PER_TOKEN, _NORMALIZES = "num_experts_per_tok", "norm_topk_prob"
_SPARSE_STEP, _DENSE_LAYERS = "decoder_sparse_step", "mlp_only_layers"
_JOINED = re.compile(r"(.*\.mlp\.experts)\.(gate_up_proj|down_proj)")


def read_experts(config: Mapping[str, Any], width: str, *, dense_layers: bool) -> ExpertSettings | None:
    """Return the experts of a complete config without problems; None where every layer is dense.

    `width` is the key of an expert's width. `dense_layers` says whether the family reads which layers are dense.
    """
    layers = range(config["num_hidden_layers"])
    step, dense = (config[_SPARSE_STEP], config[_DENSE_LAYERS]) if dense_layers else (1, [])
    sparse_layers = tuple(layer not in dense and (layer + 1) % step == 0 for layer in layers)
    if not any(sparse_layers):
        return None
    return ExpertSettings(
        num_experts=_num_experts(config),
        experts_per_token=config[_EXPERTS_PER_TOKEN],
        ffn_hidden_size=config[width],
        weights_sum_to_one=config[_NORMALIZES],
        sparse_layers=sparse_layers,
    )


def expert_problems(config: Mapping[str, Any], width: str, *, dense_layers: bool) -> Iterator[tuple[str, str]]:
    """Yield what is unsupported, by the key of the config. An absent key is no problem."""
    sizes = {NUM_EXPERTS[0]: _num_experts(config), _EXPERTS_PER_TOKEN: config.get(_EXPERTS_PER_TOKEN, 1)}
    sizes[width] = config.get(width, 1)
    if dense_layers:
        sizes[_SPARSE_STEP] = config.get(_SPARSE_STEP, 1)
        dense = config.get(_DENSE_LAYERS, [])
        if not isinstance(dense, list) or any(type(layer) is not int for layer in dense):
            yield _DENSE_LAYERS, f"{dense!r} is no list of layers"
    wrong = {key: size for key, size in sizes.items() if type(size) is not int or size < 1}
    yield from ((key, f"{size!r} is no whole number from 1") for key, size in wrong.items())
    normalizes = config.get(_NORMALIZES, False)
    if type(normalizes) is not bool:
        yield _NORMALIZES, f"{normalizes!r} is neither true nor false"
    chosen, available = sizes[_EXPERTS_PER_TOKEN], sizes[NUM_EXPERTS[0]]
    if wrong.keys() & {_EXPERTS_PER_TOKEN, NUM_EXPERTS[0]} or _EXPERTS_PER_TOKEN not in config:
        return
    if chosen > available:
        yield _EXPERTS_PER_TOKEN, f"{chosen} is more than num_experts={available}"
    elif chosen == 1 and normalizes is True:
        yield _EXPERTS_PER_TOKEN, f"1 is not supported with {_NORMALIZES}=True; Megatron has no such router"


def spelling_problems(config: Mapping[str, Any]) -> dict[str, str]:
    """Return a problem where a config.json spells the number of experts in two ways that differ."""
    numbers = [config[key] for key in NUM_EXPERTS if config.get(key) is not None]
    if len(numbers) < 2 or numbers[0] == numbers[1]:
        return {}
    return {NUM_EXPERTS[1]: f"{numbers[1]!r} differs from {NUM_EXPERTS[0]}={numbers[0]!r}"}


def _num_experts(config: Mapping[str, Any]) -> Any:
    """Return the number of experts under either spelling; 1 where the config lacks it."""
    return next((config[key] for key in NUM_EXPERTS if config.get(key) is not None), 1)


@dataclass(frozen=True)
class JoinedPart:
    """One expert's projection within a stored tensor that joins all experts."""

    stored_name: str
    expert: int
    rows: slice
    shape: tuple[int, int]


def joined_parts(name: str, shape: tuple[int, ...]) -> dict[str, JoinedPart]:
    """Return the parts of a tensor that joins all experts, by the name of each expert's own tensor.

    `experts.gate_up_proj` is [experts, 2 * width, hidden], and `experts.down_proj` [experts, hidden, width]. The result
    is empty for any other name, and for another number of axes.
    """
    match = _JOINED.fullmatch(name)
    if not match or len(shape) != 3:
        return {}
    experts, rows, columns = shape
    projections = ("gate_proj", "up_proj") if match[2] == "gate_up_proj" else ("down_proj",)
    height = rows // len(projections)
    return {
        f"{match[1]}.{expert}.{projection}.weight": JoinedPart(
            name, expert, slice(index * height, (index + 1) * height), (height, columns)
        )
        for expert in range(experts)
        for index, projection in enumerate(projections)
    }


def joins_experts(name: str) -> bool:
    """Return whether a tensor's name is that of all experts' projections in one."""
    return _JOINED.fullmatch(name) is not None
