"""Runs Megatron Core on machines without CUDA, over gloo in fp32.

Megatron Core names its accelerator literally (`torch.cuda.current_device()`, `device="cuda"`, `tensor.cuda()`).
`install` redirects the module-level names to the CPU for the whole process. The context `accelerator_names` redirects
tensor calls. The context is per thread and costs about a microsecond per torch call, so only Megatron calls run inside
it. Arithmetic and parallel logic stay unchanged.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_CPU = torch.device("cpu")


class _AcceleratorNamesMeanCpu(TorchFunctionMode):
    """Inside this mode `x.cuda()` returns `x`, `device="cuda"` means the CPU, and tensor types look like CUDA types."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return func(*args).replace("torch.", "torch.cuda.", 1)
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            kwargs = {**kwargs, "device": _CPU}
        return func(*args, **kwargs)


class _Event:
    """A point in a stream. All work before it is complete."""

    def synchronize(self) -> None: ...


class _Stream:
    """The only stream of a CPU. It runs in program order, so every wait returns at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def wait_stream(self, *args: Any) -> None: ...

    def wait_event(self, *args: Any) -> None: ...

    def record_event(self, *args: Any) -> _Event:
        return _Event()

    def synchronize(self) -> None: ...


class _Adam(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101) with the step count in the parameter group.

    The fused optimizers have this layout, and DistributedOptimizer restores it from checkpoints. It refuses the layout
    of torch's own AdamW, which has one step count per parameter.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **fused_only: Any,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "step": 0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["step"] = count = group["step"] + 1
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["exp_avg"].lerp_(parameter.grad, 1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                scale = (state["exp_avg_sq"] / (1 - beta2**count)).sqrt_().add_(group["eps"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.addcdiv_(state["exp_avg"], scale, value=-group["lr"] / (1 - beta1**count))


def install() -> None:
    """Lets this process be a Megatron rank without CUDA. Call it before the first import of megatron.core."""
    if torch.cuda.is_available() or getattr(torch.cuda, "_tempo_cpu", False):
        return
    os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    cuda: Any = torch.cuda
    cuda._tempo_cpu = True
    cuda.current_device = lambda: _CPU
    cuda.synchronize = cuda.empty_cache = lambda *args, **kwargs: None
    cuda.get_rng_state = cuda.random.get_rng_state = lambda device=None: torch.get_rng_state()
    cuda.manual_seed = torch.manual_seed
    cuda.Stream = _Stream
    cuda.current_stream = cuda.default_stream = lambda *args: _Stream()
    cuda.stream = lambda stream: contextlib.nullcontext()

    with accelerator_names():
        from megatron.core import optimizer
        from megatron.core.models.hybrid import hybrid_block
        from megatron.core.optimizer import distrib_optimizer
        from megatron.core.tensor_parallel import random
        from megatron.core.transformer.moe import token_dispatcher

    from tempo_megatron.megatron.norm import RMSNorm

    random._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)
    optimizer.Adam = distrib_optimizer.Adam = _Adam
    optimizer.USING_PYTORCH_OPTIMIZER = False
    distrib_optimizer.HAVE_APEX_OR_TE = distrib_optimizer.USING_APEX_OPTIMIZER = True
    hybrid_block.TENorm = RMSNorm
    token_dispatcher.maybe_move_tensor_to_cpu = _on_host


def _on_host(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    """Returns the tensor, or its numbers with `as_numpy`: gloo's all-to-all needs sizes that are no tensors.

    megatron-core's own function does so for tensors of a GPU alone.
    """
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor


def new_stream() -> Any:
    """Returns a new stream, on CPUs a `_Stream` even after vLLM has replaced torch.cuda's names."""
    return torch.cuda.Stream() if torch.cuda.is_available() else _Stream()


def accelerator_names() -> contextlib.AbstractContextManager[Any]:
    """Returns the context for Megatron calls, which does nothing on GPUs."""
    return contextlib.nullcontext() if torch.cuda.is_available() else _AcceleratorNamesMeanCpu()
