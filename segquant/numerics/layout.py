"""Layout: the shape of a quantized linear, without its numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch

from segquant.numerics.formats import QuantScheme, QuantSpec
from segquant.numerics.hadamard import hadamard_blocks

HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def group_pieces(columns: tuple[int, ...], group_size: int) -> tuple[int, ...]:
    """Cut every column piece into groups of `group_size`; pieces must be multiples of it."""
    return tuple(group_size for size in columns for _ in range(size // group_size))


@dataclass(frozen=True)
class Layout:
    """Where a linear is cut and which buffers it has.

    Args:
        in_features, out_features, bias: as in nn.Linear.
        scheme: number formats; `scheme.weight` is not None.
        rows: output segments, sizes summing to out_features; each is one "tensor" to per-tensor scales.
        columns: input segments, sizes summing to in_features, each with its own scales.
        dual: per input segment, whether its activation has one scale per sign.
        branches: sizes of the runs of outputs that share one smoothed (hence one quantized) input; one run
            unless output segments are smoothed apart.
        smooth: whether the input is divided by a smoothing vector (one per branch).
        ranks: rank of each branch's low-rank factors, () without.
        half: dtype of the low-rank factors.
        rotate: whether the (smoothed) input is rotated by a randomized block-diagonal Hadamard matrix, every input
            segment by itself.
        taps: columns per input channel, which share its smoothing: the kernel's positions of a convolution.
    """

    in_features: int
    out_features: int
    bias: bool
    scheme: QuantScheme
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    dual: tuple[bool, ...]
    branches: tuple[int, ...]
    smooth: bool = False
    ranks: tuple[int, ...] = ()
    half: str = "float16"
    rotate: bool = False
    taps: int = 1

    def __post_init__(self) -> None:
        if self.scheme.weight is None:
            raise ValueError("a quantized linear needs a weight QuantSpec; this scheme leaves the weight in float")
        for what, sizes, total in (
            ("rows", self.rows, self.out_features),
            ("branches", self.branches, self.out_features),
            ("columns", self.columns, self.in_features),
        ):
            if sum(sizes) != total or min(sizes) < 1:
                raise ValueError(f"{what}={sizes} must be positive and sum to {total}")
        if len(self.dual) != len(self.columns):
            raise ValueError(f"dual has {len(self.dual)} entries for {len(self.columns)} input segments")
        if self.ranks and len(self.ranks) != len(self.branches):
            raise ValueError(f"ranks has {len(self.ranks)} entries for {len(self.branches)} branches")
        if any(size % self.taps for size in self.columns):
            raise ValueError(f"columns={self.columns} must be multiples of the {self.taps} taps of a channel")
        if self.rotate and any(self.dual):
            raise ValueError("a rotated input has no sign of its own left: dual must be False throughout")

    @property
    def weight_spec(self) -> QuantSpec:
        """The weight's format, never None."""
        assert self.scheme.weight is not None
        return self.scheme.weight

    @cached_property
    def weight_columns(self) -> tuple[int, ...]:
        """Runs of input channels that share a weight scale within a row."""
        group = self.weight_spec.group_size
        return group_pieces(self.columns, group) if group else self.columns

    @cached_property
    def weight_rows(self) -> tuple[int, ...]:
        """Runs of outputs that share a weight scale."""
        return self.rows if self.weight_spec.granularity == "tensor" else (1,) * self.out_features

    @cached_property
    def input_columns(self) -> tuple[int, ...]:
        """Runs of input channels that share an activation scale."""
        spec = self.scheme.input
        return group_pieces(self.columns, spec.group_size) if spec and spec.group_size else self.columns

    @cached_property
    def input_dual(self) -> tuple[bool, ...]:
        """`dual` for every entry of `input_columns`."""
        spec = self.scheme.input
        if spec is None or not spec.group_size:
            return self.dual
        counts = (size // spec.group_size for size in self.columns)
        return tuple(flag for flag, count in zip(self.dual, counts, strict=True) for _ in range(count))

    @cached_property
    def rotation_blocks(self) -> tuple[int, ...]:
        """Sizes of the Hadamard blocks, summing to in_features."""
        return tuple(block for size in self.columns for block in hadamard_blocks(size))

    @property
    def any_dual(self) -> bool:
        """Whether a quantized input has a scale per sign anywhere."""
        return self.scheme.input is not None and any(self.dual)

    @cached_property
    def branch_slices(self) -> tuple[slice, ...]:
        """Output rows of every branch."""
        return slices(self.branches)

    def buffers(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of every buffer by name (the bias, whose dtype is the model's, left out)."""
        weight, n = self.weight_spec, len(self.branches)
        width = (self.in_features + 1) // 2 if weight.dtype == "int4" else self.in_features
        code = torch.int8 if weight.dtype == "int8" else torch.uint8
        found: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "codes": ((self.out_features, width), code),
            "weight_scale": ((len(self.weight_rows), len(self.weight_columns)), torch.float32),
        }
        if self.smooth:
            found["smooth"] = ((n, self.in_features), torch.float32)
        if self.rotate:
            found["rotation_signs"] = ((self.in_features,), torch.int8)
        if self.scheme.static_input:
            shape = (n, len(self.input_columns))
            found["input_scale"] = (shape, torch.float32)
            if self.any_dual:
                found["input_scale_negative"] = (shape, torch.float32)
        if self.ranks:
            half = HALF[self.half]
            flat = sum(size * rank for size, rank in zip(self.branches, self.ranks, strict=True))
            found["low_rank_down"] = ((sum(self.ranks), self.in_features), half)
            found["low_rank_up"] = ((flat,), half)
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary; `from_dict` is its inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Layout:
        """Inverse of `to_dict`."""
        tuples = {key: tuple(values[key]) for key in ("rows", "columns", "dual", "branches", "ranks")}
        return cls(**{**values, **tuples, "scheme": QuantScheme.from_dict(values["scheme"])})


def slices(sizes: tuple[int, ...]) -> tuple[slice, ...]:
    """Consecutive slices of the given sizes."""
    return tuple(slice(stop - size, stop) for size, stop in zip(sizes, accumulate(sizes), strict=True))
