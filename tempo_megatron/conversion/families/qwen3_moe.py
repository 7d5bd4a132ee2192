"""Qwen3 with experts, such as Qwen3-30B-A3B. Layers of one MLP may stand between layers with experts."""

from tempo_megatron.conversion.decoder import Family

QWEN3_MOE = Family(
    name="Qwen3Moe",
    critic_ending="ForTokenClassification",
    rope_types=("default",),
    fixed_settings={"use_sliding_window": False},
    optional_biases=("attention_bias",),
    qk_norm="each_head",
    expert_width="moe_intermediate_size",
    mixes_dense_layers=True,
)
