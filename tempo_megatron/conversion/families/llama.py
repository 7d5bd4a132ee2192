"""Llama 3.x with its RoPE scaling, and models of the same architecture such as SmolLM2."""

from tempo_megatron.conversion.decoder import Family

LLAMA = Family(
    name="Llama",
    critic_ending="ForTokenClassification",
    rope_types=("default", "llama3"),
    fixed_settings={"pretraining_tp": 1},
    optional_biases=("attention_bias", "mlp_bias"),
)
