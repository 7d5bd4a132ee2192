"""Qwen3, dense, 0.6B to 32B."""

from tempo_megatron.conversion.decoder import Family

QWEN3 = Family(
    name="Qwen3",
    critic="ForTokenClassification",
    rope_types=("default",),
    only={"use_sliding_window": False},
    biases=("attention_bias",),
    qk_norm="each_head",
)
