"""OLMoE: experts in every layer; queries and keys are normalized over all heads.

vLLM weights experts by a softmax over all of them, clips nothing, and adds 1e-5 to a norm's mean square, whatever the
config says.
"""

from tempo_megatron.conversion.decoder import Family

OLMOE = Family(
    name="Olmoe",
    critic_ending="ForTokenClassification",
    rope_types=("default",),
    fixed_settings={"clip_qkv": None, "norm_topk_prob": False, "rms_norm_eps": 1e-5},
    qk_norm="all_heads",
    expert_width="intermediate_size",
)
