"""The imports that the server makes once, before its first fork.

Nothing here may start a thread or use a device, because neither survives a fork.
"""

import os

# The packages below read these variables while they are imported. A rank sets the same values before its own imports.
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}

from tests.shapes import check_shapes

check_shapes()  # Before the packages below are imported.

import vllm.entrypoints.llm  # noqa: E402, F401  (the modules below import vLLM only when an engine starts)

import tempo_megatron.evaluation.command  # noqa: E402
import tempo_megatron.training.loop  # noqa: E402, F401  (torch, Megatron Core and transformers)
