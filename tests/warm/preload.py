"""The imports that the server makes once, before its first fork.

Nothing here may start a thread or use a device, because neither survives a fork.
"""

import os
import warnings

# The packages below read these variables while they are imported. A rank sets the same values before its own imports.
os.environ |= {
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # Arrow's allocator would start a thread.
    "OMP_NUM_THREADS": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}

from tests.shapes import check_shapes

check_shapes()  # Before the packages below are imported.

import vllm.entrypoints.llm  # noqa: E402  (the modules below import vLLM only when an engine starts)
import vllm.v1.worker.cpu_worker  # noqa: E402, F401  (vLLM imports it by name when an engine starts)
from vllm.model_executor.models import registry  # noqa: E402

# To keep CUDA out of this process, vLLM reads a model's properties in a Python of its own. Each rank waits ten seconds.
registry._run_in_subprocess = lambda read: read()

import tempo_megatron.evaluation.command  # noqa: E402
import tempo_megatron.training.loop  # noqa: E402  (torch, Megatron Core and transformers)
from tempo_megatron.megatron import cpu  # noqa: E402

with warnings.catch_warnings(), cpu.accelerator_names():
    warnings.simplefilter("ignore")
    import megatron.core.optimizer  # noqa: F401
    import reasoning_gym  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401

    import tempo_megatron.megatron.attention
    import tempo_megatron.training.command  # noqa: F401
