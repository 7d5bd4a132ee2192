"""The rows of the paper's tables, as recipes with their overrides. Models that the paper has not have the same rows."""

from __future__ import annotations

import functools
from pathlib import Path

from tempo_megatron.config import Config, load_config

RECIPES = Path(__file__).parents[3] / "recipes"
MODELS = {"qwen3_8b": "qwen3", "qwen3_14b": "qwen3", "olmo3_7b": "olmo-3", "qwen3_30b_a3b": "qwen3-moe"}
OWN_CODE = {
    **{f"{name}, own": name for name in ("ttrl", "empo", "scrl", "trapo")},
    "tempo_reference_code": "tempo_reference_code",
}
"""The rows that have a file in recipes/methods."""
ROWS = ("ppo", "tempo", "frozen_critic", "ttrl", "empo", *OWN_CODE)
ALL_ROWS = [
    (model, domain, name)
    for model in MODELS
    for domain in ("math", "general")
    if (RECIPES / f"{model}_{domain}.yaml").is_file()
    for name in ROWS
]


@functools.cache
def row(model: str, domain: str, name: str) -> Config:
    if name in OWN_CODE:
        size = "_14b" if (name, model) == ("tempo_reference_code", "qwen3_14b") else ""
        override = str(RECIPES / "methods" / f"{OWN_CODE[name]}{size}.yaml")
    else:
        override = f"method={name}"
    return load_config(RECIPES / f"{model}_{domain}{'_rlvr' if name == 'ppo' else ''}.yaml", [override])
