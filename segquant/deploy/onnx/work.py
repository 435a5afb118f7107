"""One branch of a quantized layer that is being written."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir
import torch
from torch import Tensor

from segquant.deploy.onnx.forms import FLOATS, Profile, holds_four_bits
from segquant.deploy.onnx.tape import Array, Tape, array, fp8, int4, uint4
from segquant.kernels.integers import kernel_bits, signed_bits, signed_codes
from segquant.numerics import functional as F
from segquant.numerics.fake_quant import expand_weight_scale, weight_codes, weight_scales
from segquant.numerics.input_grid import InputGrid
from segquant.numerics.layout import Layout, slices
from segquant.numerics.weight_grid import WeightScales
from segquant.transforms.smoothing import Smoothing

CENTRE = 128
"""The unsigned code of 0."""


@dataclass(frozen=True)
class Piece:
    """Columns with one scale of the weight and one of the input: their numbers and places."""

    columns: slice
    weight: int
    given: int


@dataclass(frozen=True)
class Work:
    """What is written, and where.

    Args:
        every_cpu: codes that no CPU's integer product saturates on.
        image: a convolution on pictures.
    """

    tape: Tape
    name: str
    layout: Layout
    tensors: dict[str, Tensor]
    branch: int
    profile: Profile
    every_cpu: bool
    image: bool = False

    @property
    def apart(self) -> bool:
        """Whether inputs are divided by their scale and rounded before they are quantized.

        OpenVINO else merges the smoothing before into one operator with a range per channel, which it gets wrong where
        sizes are free and products float.
        """
        smoothed = self.layout.transform(Smoothing.name) is not None
        return self.signed_values and smoothed

    @property
    def signed_values(self) -> bool:
        """Whether inputs below zero are multiplied as such, not their magnitudes, whose product is taken away.

        OpenVINO takes a Sub behind Conv for a factor of its weights, which are floats then. Of weights that two
        products share, codes must have one scale: `Model.reshape` makes one of equal nodes, and codes of two scales
        are floats to it. So that the sign is the input's.
        """
        return self.image and not self.profile.fused and not self.profile.symmetric

    @property
    def centred(self) -> bool:
        """Whether 8-bit weights with zero points are written as codes less 128, and what is left of those as `offset`.

        OpenVINO multiplies weights with zero points as floats.
        """
        spec = self.layout.weight_spec
        return spec.zero_point and signed_bits(spec) > 8 and not self.profile.fused and not self.profile.symmetric

    @property
    def rows(self) -> slice:
        return self.layout.branch_slices[self.branch]

    @property
    def label(self) -> str:
        """Of this branch's constants."""
        return self.name if len(self.layout.branches) == 1 else f"{self.name}.{self.branch}"

    def pieces(self) -> list[Piece]:
        """Where either the weight's scale or the input's changes, it is cut."""
        layout = self.layout
        whole = (layout.in_features,)
        weights, given = layout.weight_columns, layout.input_columns if layout.scheme.input else whole
        ends = sorted({part.stop for sizes in (weights, given) for part in slices(sizes)})
        starts = [0, *ends[:-1]]
        return [
            Piece(slice(start, stop), _position(weights, start), _position(given, start))
            for start, stop in zip(starts, ends, strict=True)
        ]

    def codes(self, signed: bool = True) -> Tensor:
        """The branch's weight codes [rows, in]: int8, bytes of floats, or uint8 that count from `weight_zero`.

        Args:
            signed: less their zero points where that fits in a byte, less 128 where they are `centred`.
        """
        layout, spec = self.layout, self.layout.weight_spec
        if (signed or self.profile.symmetric) and spec.zero_point and signed_bits(spec) <= 8:
            return signed_codes(layout, self.tensors)[self.rows]
        if signed and self.centred:
            return (weight_codes(layout, {"codes": self.tensors["codes"][self.rows]}) ^ CENTRE).view(torch.int8)
        return weight_codes(layout, {"codes": self.tensors["codes"][self.rows]})

    @cached_property
    def scales(self) -> WeightScales:
        """Of the whole layer's blocks."""
        return weight_scales(self.layout, self.tensors)

    def weight_scale(self, piece: int) -> Array:
        """Of a column piece, float32 [rows], or a scalar if one for all."""
        return array(self._of_piece(self.scales.scale, piece))

    def weight_zero(self, piece: int, codes: Tensor) -> Array | None:
        """Likewise, what its codes count from; None where that is 0."""
        zeros = self.zeros(codes)
        return None if zeros is None else self.stored(self._of_piece(zeros, piece))

    def offset(self, piece: int) -> Array:
        """What `centred` codes of a column piece count from: their zero points less 128, int8 [rows], or a scalar."""
        assert self.scales.zero is not None
        return array((self._of_piece(self.scales.zero, piece).to(torch.uint8) ^ CENTRE).view(torch.int8))

    def zeros(self, codes: Tensor) -> Tensor | None:
        """What codes count from, of the whole layer's blocks, uint8; None where that is 0."""
        zeros = self.scales.zero
        return None if zeros is None or codes.dtype == torch.int8 else zeros.to(torch.uint8)

    def _of_piece(self, values: Tensor, piece: int) -> Tensor:
        rows, part = self.layout.weight_rows, values[:, piece : piece + 1]
        return expand_weight_scale(part, rows, (1,))[self.rows].reshape(-1) if len(rows) > 1 else part.reshape(())

    def blocks(self, values: Tensor) -> Tensor:
        """Of groups: the branch's scales or zero points [rows, groups]."""
        return expand_weight_scale(values, self.layout.weight_rows, (1,) * values.shape[1])[self.rows]

    def stored(self, codes: Tensor) -> Array:
        """Codes as the file has them: packed where they have at most four bits."""
        spec = self.layout.weight_spec
        if spec.dtype in FLOATS:
            return fp8(codes, spec.dtype)
        if codes.dtype == torch.uint8:
            return uint4(codes) if spec.bits <= 4 else array(codes)
        return int4(codes) if kernel_bits(spec) == 4 and not self.profile.symmetric else array(codes)

    def stored_block(self, codes: Tensor) -> Array:
        """Likewise [in, rows], of weights in groups."""
        spec, symmetric = self.layout.weight_spec, self.profile.symmetric
        fours = symmetric and spec.bits <= 4 and holds_four_bits(spec, self.profile, codes.shape[-1])
        return int4(codes) if fours else self.stored(codes)

    def bias(self, *shape: int) -> ir.Value | None:
        """Float32, of `shape` (−1: the rows)."""
        if not self.layout.bias:
            return None
        bias = self.tensors["bias"][self.rows].float()
        return self.tape.constant(f"{self.label}.bias", lambda: array(bias.reshape(shape)))

    def input_scale(self, piece: int, negative: bool = False) -> float:
        name = "input_scale_negative" if negative else "input_scale"
        return float(self.tensors[name][self.branch, piece])

    def input_zero(self, piece: int) -> int:
        """Of a static input with zero points."""
        return int(self.tensors["input_zero"][self.branch, piece])

    @property
    def grid(self) -> InputGrid:
        """Of an input that is quantized."""
        assert self.layout.input_grid is not None
        return self.layout.input_grid

    @property
    def zero_point(self) -> bool:
        return self.grid.zero_point

    def dual(self, piece: int) -> bool:
        """Whether an input piece takes two products."""
        return not self.grid.zero_point and self.grid.dual[piece]

    def range(self) -> tuple[int, int]:
        """Of the input's integer codes."""
        return int(F.code_min(self.grid.spec.dtype)), int(F.code_max(self.grid.spec.dtype))


def _position(sizes: tuple[int, ...], column: int) -> int:
    return next(index for index, part in enumerate(slices(sizes)) if part.start <= column < part.stop)
