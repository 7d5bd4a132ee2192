"""OLMo 2: norms follow attention and MLP; queries and keys are normalized over all heads."""

from tempo_megatron.conversion.decoder import Family

OLMO2 = Family(
    name="Olmo2",
    critic_ending="ForSequenceClassification",
    rope_types=("default",),
    qk_norm="all_heads",
    norm_after=True,
)
