"""OLMo 2: norms after the sub-layers, queries and keys normalized over all heads."""

from tempo_megatron.conversion.decoder import Family

OLMO2 = Family(
    name="Olmo2",
    critic="ForSequenceClassification",
    rope_types=("default",),
    qk_norm="all_heads",
    norm_after=True,
)
