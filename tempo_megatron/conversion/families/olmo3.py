"""OLMo 3: OLMo 2 with three layers in four seeing a window, and YaRN in the others."""

from tempo_megatron.conversion.decoder import Family

OLMO3 = Family(
    name="Olmo3",
    critic="ForSequenceClassification",
    rope_types=("default", "yarn"),
    qk_norm="all_heads",
    norm_after=True,
    windows=True,
)
