"""Qwen3: the dense models from 0.6B to 32B."""

from tempo_megatron.conversion.decoder import Family

QWEN3 = Family(
    name="Qwen3",
    critic_ending="ForTokenClassification",
    rope_types=("default",),
    fixed_settings={"use_sliding_window": False},
    optional_biases=("attention_bias",),
    qk_norm="each_head",
)
