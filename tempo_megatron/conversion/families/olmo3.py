"""OLMo 3: as OLMo 2, with sliding-window attention in three layers of four and YaRN in the others."""

from tempo_megatron.conversion.decoder import Family

OLMO3 = Family(
    name="Olmo3",
    critic_ending="ForSequenceClassification",
    rope_types=("default", "yarn"),
    qk_norm="all_heads",
    norm_after=True,
    sliding_windows=True,
)
