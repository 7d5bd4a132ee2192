"""Llama 3.x, RoPE scaling included, and models of its architecture such as SmolLM2."""

from tempo_megatron.conversion.decoder import Family

LLAMA = Family(
    name="Llama",
    critic="ForTokenClassification",
    rope_types=("default", "llama3"),
    only={"pretraining_tp": 1},
    biases=("attention_bias", "mlp_bias"),
)
