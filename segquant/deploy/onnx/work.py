"""One branch of a quantized layer that is being written."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from torch import Tensor

from segquant.deploy.onnx.forms import Profile
from segquant.deploy.onnx.tape import Array, Tape, array, fp8, int4
from segquant.numerics import functional as F
from segquant.numerics.fake_quant import expand_weight_scale
from segquant.numerics.input_grid import InputGrid
from segquant.numerics.layout import Layout, slices
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
        return self.image and smoothed and not self.profile.fused and not self.profile.symmetric

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

    def codes(self) -> Tensor:
        """The branch's weight codes [rows, in]: int8, or bytes of fp8."""
        codes = self.tensors["codes"][self.rows]
        return F.unpack_int4(codes, self.layout.in_features) if self.layout.weight_spec.dtype == "int4" else codes

    def weight_scale(self, piece: int) -> Array:
        """Of a column piece, float32 [rows], or a scalar if one for all."""
        layout = self.layout
        scale = self.tensors["weight_scale"][:, piece : piece + 1]
        if len(layout.weight_rows) > 1:
            scale = expand_weight_scale(scale, layout.weight_rows, (1,))[self.rows]
        return array(scale.reshape(-1) if len(layout.weight_rows) > 1 else scale.reshape(()))

    def stored(self, codes: Tensor) -> Array:
        """Codes as the file has them: packed where they have four bits."""
        dtype = self.layout.weight_spec.dtype
        if dtype == "fp8":
            return fp8(codes)
        return int4(codes) if dtype == "int4" and not self.profile.symmetric else array(codes)

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
