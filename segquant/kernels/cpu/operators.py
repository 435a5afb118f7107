"""The operators of the compiled library, as torch's compilers and exporters know them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from segquant.kernels.cpu.build import why_unavailable
from segquant.modules.window import Window

NAMESPACE = "segquant_cpu"


@lru_cache(maxsize=1)
def why_not_exact() -> str | None:
    """Why the operators do not run here, as the end of a sentence; None if they do, and exactly."""
    reason = why_unavailable()
    if reason is not None:
        return reason
    for name, fake in (
        ("linear", _linear),
        ("linear_gelu", _linear),
        ("convolution", _convolution),
        ("attention", _attention),
    ):
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake)
    with torch.inference_mode(False), torch.no_grad():
        wrong = [f"int{bits}" for bits in (8, 4) if not (_exact(bits, 0) and _exact(bits, 1))]
        if not _exact_fp8():
            wrong.append("fp8")
    return f"is not exact on this processor with weights of {' and '.join(wrong)}" if wrong else None


def linear(x: Tensor, *layer: Any) -> Tensor:
    """[rows, in] -> [rows, out]; see linear.cpp."""
    made: Tensor = torch.ops.segquant_cpu.linear(x, *layer)
    return made


def linear_gelu(x: Tensor, *layer: Any) -> Tensor:
    """`linear`, and GELU (by its tanh form) of what comes out, in one pass."""
    made: Tensor = torch.ops.segquant_cpu.linear_gelu(x, *layer)
    return made


def convolution(x: Tensor, *layer: Any) -> Tensor:
    """[batch, in, h, w] -> [batch, out, h', w']."""
    made: Tensor = torch.ops.segquant_cpu.convolution(x, *layer)
    return made


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, codes: bool) -> Tensor:
    """softmax(q kᵀ · scale) v, [batch, heads, tokens, size] each, in q's dtype; lies as [batch, tokens, heads, size].

    Args:
        codes: multiply codes of 8 bits, else floats.
    """
    made: Tensor = torch.ops.segquant_cpu.attention(q, k, v, scale, codes)
    return made


def _linear(x: Tensor, codes: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0], codes.shape[0])


def _convolution(x: Tensor, codes: Tensor, *layer: Any) -> Tensor:
    padding, kernel, stride, dilation = layer[-4:]
    height, width = Window(kernel, stride, padding, dilation).size(x.shape[2], x.shape[3])
    return x.new_empty(x.shape[0], codes.shape[0], height, width)


def _attention(q: Tensor, *_: Any) -> Tensor:
    batch, heads, tokens, size = q.shape
    return q.new_empty(batch, tokens, heads, size).transpose(1, 2)


def _exact(bits: int, dual: int) -> bool:
    """Whether the largest codes of both signs multiply without saturation."""
    size, low = 64, -(2 ** (bits - 1))
    codes = torch.full((2, size), low, dtype=torch.int8, device="cpu")
    codes[1] = -low - 1
    stored = codes if bits == 8 else ((codes[:, 0::2] & 15) | (codes[:, 1::2] << 4)).view(torch.uint8)
    x = torch.tensor([[-128.0], [127.0]], dtype=torch.float32, device="cpu").expand(2, size).contiguous()
    one = torch.ones(2, 1, dtype=torch.float32, device="cpu")
    scale = torch.ones(1, 1, dtype=torch.float32, device="cpu")
    found = linear(x, stored, one, *_none(4), [], None, scale, *_none(2), [2], [size], [dual], [size], bits, 8, False)
    return torch.equal(found.double(), x.double() @ codes.double().T)


def _exact_fp8() -> bool:
    """Whether every number times every other is right."""
    codes = torch.arange(256, dtype=torch.uint8, device="cpu").view(torch.float8_e4m3fn).unsqueeze(1)
    values, one = codes.float(), torch.ones(1, 1, dtype=torch.float32, device="cpu")
    scale, expected = torch.ones(256, 1, dtype=torch.float32, device="cpu"), values @ values.T
    found = linear(values, codes, scale, *_none(4), [], None, one, *_none(2), [256], [1], [0], [1], 8, 8, False)
    return torch.equal(found.nan_to_num(1e9), expected.nan_to_num(1e9))


def _none(count: int) -> tuple[None, ...]:
    return (None,) * count


Operator = Callable[..., Tensor]
