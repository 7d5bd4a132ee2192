"""RMS normalization on GPUs, and the gradients of narrow norms and of SwiGLU. Import this module where a kernel runs.

Sums are in fp32. Compiled torch code for them reads its inputs twice and takes longer to start.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 2048
"""Entries of the rows that a program of the norm's gradient reads at a time."""
_COLUMNS = 1024
"""Columns of a row that a program of SwiGLU's gradient computes."""


def rms_norm(
    inputs: Tensor, weight: Tensor, epsilon: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the norm of inputs [..., width], 1 / sqrt(mean(x^2) + epsilon) in fp32 [..., 1], and x in their dtype.

    x is the rounded sum of inputs and `residual`, or the inputs themselves. The bits of a row depend on its own
    numbers and the width: one program computes it, in one order of sums.
    """
    *outer, width = inputs.shape
    heads = outer[-1] if len(outer) > 1 else 1
    token_stride, head_stride = inputs.stride(0), inputs.stride(-2) if heads > 1 else 0
    # A tensor of heads may be a part of a wider one. Of all other tensors the rows follow one another.
    if inputs.stride(-1) != 1 or residual is not None or inputs.numel() != inputs.shape[0] * heads * width:
        inputs, heads, token_stride, head_stride = inputs.contiguous(), 1, width, 0
    output = torch.empty(inputs.shape, dtype=inputs.dtype, device=inputs.device)
    inverse = torch.empty((*outer, 1), dtype=torch.float32, device=inputs.device)
    total = inputs if residual is None else torch.empty_like(output)
    columns = triton.next_power_of_2(width)
    _rms_norm[(inverse.numel(),)](
        inputs,
        inputs if residual is None else residual.contiguous(),
        weight,
        output,
        inverse,
        total,
        epsilon,
        width,
        heads,
        token_stride,
        head_stride,
        HAS_RESIDUAL=residual is not None,
        COLUMNS=columns,
        num_warps=max(1, min(8, columns // 512)),
    )
    return output, inverse, total


def rms_norm_gradients(inputs: Tensor, weight: Tensor, inverse: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of inputs [rows, width] and weight [width], by the formulas of `norm`.

    `inverse` [rows, 1] is fp32. The weight's gradient is summed over rows in fp32.
    """
    inputs, gradient = inputs.contiguous(), gradient.contiguous()
    rows, width = inputs.shape
    columns = triton.next_power_of_2(width)
    tile_rows = max(1, _TILE // columns)
    programs = min(triton.cdiv(rows, tile_rows), 4 * _processors(inputs.device))
    for_inputs = torch.empty_like(inputs)
    partial_sums = torch.empty((programs, width), dtype=torch.float32, device=inputs.device)
    _rms_norm_gradients[(programs,)](
        inputs, weight, inverse, gradient, for_inputs, partial_sums, rows, width, COLUMNS=columns, ROWS=tile_rows
    )
    return for_inputs, partial_sums.sum(0).to(weight.dtype)


def swiglu_gradient(gate_and_up: Tensor, gradient: Tensor) -> Tensor:
    """Returns the gradient of gate and up [rows, 2 * width], by the formulas of `swiglu`; `gradient` [rows, width]."""
    gate_and_up, gradient = gate_and_up.contiguous(), gradient.contiguous()
    rows, width = gradient.shape
    result = torch.empty_like(gate_and_up)
    _swiglu_gradient[(rows, triton.cdiv(width, _COLUMNS))](gate_and_up, gradient, result, width, COLUMNS=_COLUMNS)
    return result


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@triton.jit  # type: ignore[untyped-decorator]
def _rms_norm(  # type: ignore[no-untyped-def]
    inputs,
    residuals,
    weights,
    outputs,
    inverses,
    totals,
    epsilon,
    width,
    heads,
    token_stride,
    head_stride,
    HAS_RESIDUAL: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    is_column = column < width
    start = row // heads * token_stride + row % heads * head_stride
    entry = tl.load(inputs + start + column, mask=is_column, other=0.0)
    if HAS_RESIDUAL:
        residual = tl.load(residuals + row * width + column, mask=is_column, other=0.0)
        entry = (entry.to(tl.float32) + residual.to(tl.float32)).to(totals.dtype.element_ty)
        tl.store(totals + row * width + column, entry, mask=is_column)
    wide = entry.to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(wide * wide, 0) / width + epsilon)
    tl.store(inverses + row, inverse)
    weight = tl.load(weights + column, mask=is_column, other=0.0).to(tl.float32)
    tl.store(outputs + row * width + column, (wide * inverse * weight).to(outputs.dtype.element_ty), mask=is_column)


@triton.jit  # type: ignore[untyped-decorator]
def _rms_norm_gradients(  # type: ignore[no-untyped-def]
    inputs,
    weights,
    inverses,
    gradients,
    for_inputs,
    partial_sums,
    rows,
    width,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    column = tl.arange(0, COLUMNS)
    is_column = column < width
    weight = tl.load(weights + column, mask=is_column, other=0.0).to(tl.float32)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        place = row.to(tl.int64)[:, None] * width + column[None, :]
        is_entry = (row < rows)[:, None] & is_column[None, :]
        upstream = tl.load(gradients + place, mask=is_entry, other=0.0).to(tl.float32)
        inverse = tl.load(inverses + row, mask=row < rows, other=0.0)[:, None]
        normalized = tl.load(inputs + place, mask=is_entry, other=0.0).to(tl.float32) * inverse
        weighted = upstream * weight[None, :]
        mean = tl.sum(weighted * normalized, 1)[:, None] / width
        result = inverse * (weighted - normalized * mean)
        tl.store(for_inputs + place, result.to(for_inputs.dtype.element_ty), mask=is_entry)
        total += upstream * normalized
    tl.store(partial_sums + tl.program_id(0) * width + column, tl.sum(total, 0), mask=is_column)


@triton.jit  # type: ignore[untyped-decorator]
def _swiglu_gradient(  # type: ignore[no-untyped-def]
    gates_and_ups,
    gradients,
    results,
    width,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_column = column < width
    place = row * 2 * width + column
    gate = tl.load(gates_and_ups + place, mask=is_column, other=0.0).to(tl.float32)
    up = tl.load(gates_and_ups + place + width, mask=is_column, other=0.0).to(tl.float32)
    upstream = tl.load(gradients + row * width + column, mask=is_column, other=0.0).to(tl.float32)
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
    for_gate = upstream * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
    tl.store(results + place, for_gate.to(results.dtype.element_ty), mask=is_column)
    tl.store(results + place + width, (upstream * gate * sigmoid).to(results.dtype.element_ty), mask=is_column)
