"""Gradients on GPUs: one kernel each for RMS normalization and SwiGLU. Import this module where a kernel runs.

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
