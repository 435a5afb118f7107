"""Exact products of codes by torch's own operators, which NVIDIA GPUs have kernels for; the CPU runs them too."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as nnf

FEWEST = 17
"""Rows that torch._int_mm takes at least."""
MULTIPLES = {torch.int8: 8, torch.float8_e4m3fn: 16}
"""Of which the other sizes must be multiples."""


def product(codes: Tensor, weight: Tensor) -> Tensor:
    """[rows, in] times [out, in]: int32 of int8 codes, float32 of fp8 ones; any sizes."""
    rows, outputs = codes.shape[0], weight.shape[0]
    multiple = MULTIPLES[codes.dtype]
    more = 0 if _are_enough(rows) else FEWEST
    more_columns = -codes.shape[1] % multiple
    left = _padded(codes, more_columns, more)
    right = _padded(weight, more_columns, -outputs % multiple)
    if codes.dtype == torch.int8:
        found = torch._int_mm(left, right.T)
    else:
        one = torch.ones((), dtype=torch.float32, device=codes.device)
        found = torch._scaled_mm(left, right.T, one, one, out_dtype=torch.float32, use_fast_accum=False)
    return found[:rows, :outputs]


def columns(matrix: Tensor, start: int, stop: int) -> Tensor:
    """Some columns of codes; copied where they do not lie as products read them, 16 bytes at a time."""
    part = matrix[:, start:stop]
    return part.contiguous() if start % 16 or matrix.shape[1] % 16 else part


def _padded(codes: Tensor, right: int, below: int) -> Tensor:
    if not right and not below:
        return codes.contiguous() if codes.stride(-1) != 1 else codes
    if codes.dtype == torch.int8:
        return nnf.pad(codes, (0, right, 0, below))
    return nnf.pad(codes.view(torch.uint8), (0, right, 0, below)).view(codes.dtype)  # zero has the same bits


def _are_enough(rows: int) -> bool:
    """Whether rows need no padding; False of a compiler's unknown number, which would become a guard."""
    if not torch.compiler.is_compiling():
        return rows >= FEWEST
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # takes long; compilers have it

    return statically_known_true(rows >= FEWEST)
