"""A quantized layer's buffers read anew, in numpy and float64: codes bit by bit, scales by their dtype, inputs' grids.

Nothing here asks the library but for the layout's fields; short floats are ml_dtypes'.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

FLOATS: dict[str, Any] = {
    "fp8": ml_dtypes.float8_e4m3fn, "fp8_e5m2": ml_dtypes.float8_e5m2, "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn, "fp4_e2m1": ml_dtypes.float4_e2m1fn,
}  # fmt: skip
NF4 = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip
"""The float32 numbers of QLoRA's appendix E."""
SUPER_BITS = {"k4": 4, "k6": 6, "k8": 8}
SHORT = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def bits_of(dtype: str) -> int:
    return int(dtype[2]) if dtype[:2] in ("fp", "nf") else int(dtype.strip("uint"))


def low_and_high(dtype: str) -> tuple[float, float]:
    if dtype in FLOATS:
        high = float(ml_dtypes.finfo(FLOATS[dtype]).max)
        return -high, high
    if dtype == "nf4":
        return -1.0, 1.0
    top = 2.0 ** bits_of(dtype)
    return (0.0, top - 1) if dtype[0] == "u" else (-top / 2, top / 2 - 1)


def nearest(x: np.ndarray, dtype: str) -> np.ndarray:
    """The nearest values of a format, float64 of float64."""
    low, high = low_and_high(dtype)
    x = x.clip(low, high)
    if dtype in FLOATS:
        return x.astype(np.float32).astype(FLOATS[dtype]).astype(np.float64)
    if dtype == "nf4":
        return NF4[np.abs(x[..., None] - NF4).argmin(-1)]
    return np.round(x)


def unpacked(packed: np.ndarray, columns: int, bits: int, signed: bool) -> np.ndarray:
    """Whole numbers [rows, columns] of bytes: the lowest bit first, code j from bit j·bits."""
    flat = np.unpackbits(packed, axis=-1, bitorder="little")[..., : columns * bits].astype(np.int64)
    codes = (flat.reshape(*packed.shape[:-1], columns, bits) << np.arange(bits)).sum(-1)
    return np.where(codes >> (bits - 1), codes - (1 << bits), codes) if signed else codes


def values(codes: np.ndarray, dtype: str) -> np.ndarray:
    """float64 of codes that are not negative."""
    if dtype in FLOATS:
        return codes.astype(np.uint8).view(FLOATS[dtype]).astype(np.float64)
    return NF4[codes] if dtype == "nf4" else codes.astype(np.float64)


def codes_of(layout: Any, buffers: Mapping[str, Tensor]) -> np.ndarray:
    """A weight's values [out, in] in units of its scales."""
    dtype = layout.scheme.weight.dtype
    packed = buffers["codes"].view(torch.uint8).numpy()
    return values(unpacked(packed, layout.in_features, bits_of(dtype), dtype[:3] == "int"), dtype)


def cuts_of(layout: Any) -> tuple[list[int], list[int]]:
    """Heights and widths of a weight's blocks."""
    spec = layout.scheme.weight
    rows = list(layout.rows) if spec.granularity == "tensor" else [1] * layout.out_features
    if spec.granularity != "group":
        return rows, list(layout.columns)
    return rows, [spec.group_size] * (layout.in_features // spec.group_size)


def _kept(name: str, layout: Any, buffers: Mapping[str, Tensor], signed: bool) -> np.ndarray:
    """Numbers [rows, columns] of blocks as they are kept."""
    spec = layout.scheme.weight
    buffer = buffers[name]
    if spec.scale_dtype in SUPER_BITS:
        count = layout.in_features // spec.group_size
        codes = unpacked(buffer.numpy(), count, SUPER_BITS[spec.scale_dtype], signed)
        return codes * buffers[f"{name}_super"].double().numpy().repeat(256 // spec.group_size, -1)
    if spec.scale_dtype == "e8m0":
        return buffer.numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    if spec.scale_dtype == "e4m3":
        rows = np.cumsum(cuts_of(layout)[0])  # where each row of blocks ends
        branch = np.searchsorted(np.cumsum(layout.branches), rows)
        whole = buffers[f"{name}_2"].double().numpy()[branch]
        return buffer.numpy().view(ml_dtypes.float8_e4m3fn).astype(np.float64) * whole[:, None]
    return buffer.double().numpy()


def weight_of(layout: Any, buffers: Mapping[str, Tensor]) -> np.ndarray:
    """The weight [out, in] in the space of its codes, float64."""
    spec = layout.scheme.weight
    rows, columns = cuts_of(layout)

    def wide(blocks: np.ndarray) -> np.ndarray:
        return blocks.repeat(rows, 0).repeat(columns, 1)

    codes, signed = codes_of(layout, buffers), spec.dtype[0] != "u"
    scale = _kept("weight_scale", layout, buffers, signed)
    if signed:
        return codes * wide(scale)
    if "weight_min" in buffers:  # GGUF's k formats keep how far below zero it is
        least = _kept("weight_min", layout, buffers, False) * (-1 if spec.scale_dtype in SUPER_BITS else 1)
        return codes * wide(scale) + wide(least)
    zero = unpacked(buffers["weight_zero"].numpy(), len(columns), bits_of(spec.dtype), False)
    return (codes - wide(zero)) * wide(scale)


def rounded_scales(scale: np.ndarray, amax: np.ndarray, emax: float, scale_dtype: str) -> np.ndarray:
    """Scales [..., pieces] of a token in their dtype; amax: what they are made of."""
    if scale_dtype == "e8m0":
        found = 2.0 ** (np.floor(np.log2(np.where(amax > 0, amax, 1))) - emax)
    elif scale_dtype == "e4m3":
        whole = scale.max(-1, keepdims=True) / 448
        whole = np.where(whole > 0, whole, 1)
        codes = (scale / whole).clip(2.0**-9, 448).astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
        found = codes.astype(np.float64) * whole
    else:
        found = (
            scale.astype(np.float32).astype(SHORT[scale_dtype]).astype(np.float64) if scale_dtype in SHORT else scale
        )
    return np.where(amax > 0, found, 1)


class InputOf:
    """How a layer rounds its (transformed) input [..., in], in float64."""

    def __init__(self, layout: Any, buffers: Mapping[str, Tensor], branch: int) -> None:
        self.spec, self.buffers, self.branch = layout.scheme.input, buffers, branch
        size, self.unsigned = self.spec.group_size, self.spec.dtype[0] == "u"
        self.pieces = [size or width for width in layout.columns for _ in range(width // size if size else 1)]
        apart = [flag and layout.negative != "shift" for flag in layout.dual]
        counts = [width // size if size else 1 for width in layout.columns]
        self.apart = np.repeat([self.unsigned or flag for flag in apart], counts)
        # unsigned codes 0 … 2^bits − 1 less a zero point, of all pieces where any has one
        self.one_grid = self.unsigned or (layout.negative == "zero_point" and bool(self.apart.any()))
        self.dtype = self.spec.dtype.removeprefix("u")

    def parts(self, x: Tensor) -> list[np.ndarray]:
        """What is multiplied with the weight: x ≥ 0 and x < 0 by themselves where each has a scale."""
        found = x.double().numpy()
        first, second = (np.repeat(scales, self.pieces, -1) for scales in self._scales(found))
        if self.one_grid:
            top = 2.0 ** bits_of(self.dtype) - 1
            return [((np.round(found / first) + second).clip(0, top) - second) * first]
        sides = ((found.clip(0, None), first), (found.clip(None, 0), second))
        return [nearest(side / scale, self.dtype) * scale for side, scale in sides]

    def _scales(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """By piece: of x ≥ 0 and below, or the scale and the zero point."""
        if not self.spec.dynamic:
            names = ("input_scale", "input_zero" if self.one_grid else "input_scale_negative")
            first, second = (
                self.buffers[name if name in self.buffers else "input_scale"][self.branch].double().numpy()
                for name in names
            )
            return first, second
        edges = np.cumsum([0, *self.pieces])
        cut = [x[..., start:stop] for start, stop in zip(edges[:-1], edges[1:], strict=True)]
        over = tuple(range(x.ndim)) if self.spec.granularity == "tensor" else (-1,)
        above, below = (np.stack([(sign * piece).clip(0, None).max(over) for piece in cut], -1) for sign in (1, -1))
        return self._from_extremes(above, below)

    def _from_extremes(self, above: np.ndarray, below: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        low, high = low_and_high(self.dtype)
        kept, emax = self.spec.scale_dtype, math.floor(math.log2(high)) - (self.dtype == "nf4")
        amax = np.maximum(above, below)
        plain = rounded_scales(amax / high, amax, emax, kept)
        if self.one_grid:
            levels, width = high - low, above + below
            scale = rounded_scales(width / levels, width, math.floor(math.log2(levels)), kept)
            zero = np.round(below / scale).clip(0, levels)
            return np.where(self.apart, scale, plain), np.where(self.apart, zero, -low)
        first = rounded_scales(above / high, above, emax, kept)
        second = rounded_scales(below / -low, below, emax, kept)
        first, second = np.where(above > 0, first, second), np.where(below > 0, second, first)
        return np.where(self.apart, first, plain), np.where(self.apart, second, plain)
