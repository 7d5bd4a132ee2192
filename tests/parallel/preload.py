"""What a rank imports, imported once: multiprocessing's forkserver imports this module before its first fork.

Nothing here may start a thread or ask for a device: neither survives a fork.
"""

import os

# Read while the packages below are imported. A rank sets them to the same before it imports them itself.
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}

import vllm.entrypoints.llm  # noqa: F401  (not imported by the above until an engine starts)

import tempo_megatron.training.build  # noqa: F401  (torch, Megatron Core and transformers)
