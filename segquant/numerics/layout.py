"""The shape of a quantized linear, without its numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from segquant import registry
from segquant.checks import check_fields
from segquant.numerics.formats import QuantScheme, QuantSpec, check_choice
from segquant.numerics.input_grid import NEGATIVES, InputGrid
from segquant.numerics.packing import packed_width
from segquant.numerics.transform import Place, Transform
from segquant.numerics.weight_grid import scale_buffers


def group_pieces(columns: tuple[int, ...], group_size: int) -> tuple[int, ...]:
    """Cut column pieces into groups; `group_size` must divide them."""
    return tuple(group_size for size in columns for _ in range(size // group_size))


@dataclass(frozen=True)
class Layout:
    """Where a linear is cut and which buffers it has.

    Args:
        scheme: its weight format is not None.
        rows: sizes of output segments, each one "tensor" to per-tensor scales.
        columns: sizes of input segments, each with its own scales.
        dual: input segments whose signs are treated apart.
        branches: sizes of the runs of outputs that share one transformed input.
        transforms: of the input, in order.
        taps: columns per input channel, smoothed alike.
        negative: how signs are treated apart: "dual", "zero_point" (see `InputGrid`) or "shift" (see `Shift`).
        folded: the input comes divided by buffer "folded" [in], which its producer has taken in; nothing computes with
            that.
        folded_rows: (start, stop, plus) of outputs y that are (y + plus) / s − plus instead, s in buffer "folded_rows"
            of all of them together; likewise.
    """

    in_features: int
    out_features: int
    bias: bool
    scheme: QuantScheme
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    dual: tuple[bool, ...]
    branches: tuple[int, ...]
    transforms: tuple[Transform, ...] = ()
    taps: int = 1
    negative: str = "dual"
    folded: bool = False
    folded_rows: tuple[tuple[int, int, float], ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if self.scheme.weight is None:
            raise ValueError("a quantized linear needs a weight QuantSpec; this scheme leaves the weight in float")
        for what, sizes, total in (
            ("rows", self.rows, self.out_features),
            ("branches", self.branches, self.out_features),
            ("columns", self.columns, self.in_features),
        ):
            if sum(sizes) != total or min(sizes, default=0) < 1:
                raise ValueError(f"{what}={sizes} must be positive and sum to {total}")
        if len(self.dual) != len(self.columns):
            raise ValueError(f"dual has {len(self.dual)} entries for {len(self.columns)} input segments")
        check_choice("negative", self.negative, NEGATIVES)
        edges = [edge for start, stop, _ in sorted(self.folded_rows) for edge in (start, stop)]
        if edges != sorted(edges) or any(not 0 <= edge <= self.out_features for edge in edges):
            raise ValueError(f"folded_rows={self.folded_rows} must lie apart within {self.out_features} outputs")
        if self.taps < 1 or any(size % self.taps for size in self.columns):
            raise ValueError(f"columns={self.columns} must be multiples of the {self.taps} taps of a channel")
        if any(transform.mixes for transform in self.transforms) and any(self.dual):
            raise ValueError("a rotated input has no sign of its own left: dual must be False throughout")
        self.buffers()  # which refuses transforms that do not fit, and buffers of the same name
        # torch.compile cannot take the lock of a cached property that is read for the first time
        for name in ("weight_columns", "weight_rows", "input_columns", "input_grid", "branch_slices"):
            getattr(self, name)

    @property
    def weight_spec(self) -> QuantSpec:
        assert self.scheme.weight is not None
        return self.scheme.weight

    @cached_property
    def weight_columns(self) -> tuple[int, ...]:
        """Input channels per weight scale."""
        group = self.weight_spec.group_size
        return group_pieces(self.columns, group) if group else self.columns

    @cached_property
    def weight_rows(self) -> tuple[int, ...]:
        """Outputs per weight scale."""
        return self.rows if self.weight_spec.granularity == "tensor" else (1,) * self.out_features

    @cached_property
    def input_columns(self) -> tuple[int, ...]:
        """Input channels per activation scale."""
        spec = self.scheme.input
        return group_pieces(self.columns, spec.group_size) if spec and spec.group_size else self.columns

    @cached_property
    def input_grid(self) -> InputGrid | None:
        """None where the input stays floating point."""
        spec = self.scheme.input
        if spec is None:
            return None
        if spec.zero_point:  # the same arithmetic as negative="zero_point", of every piece
            signed = replace(spec, dtype=spec.dtype[1:], symmetric=None)
            return InputGrid(self.input_columns, (True,) * len(self.input_columns), signed, "zero_point")
        counts = (size // spec.group_size if spec.group_size else 1 for size in self.columns)
        dual = tuple(flag for flag, count in zip(self.dual, counts, strict=True) for _ in range(count))
        if self.negative == "shift":  # symmetric once the shift has taken off the middle
            return InputGrid(self.input_columns, (False,) * len(dual), spec)
        return InputGrid(self.input_columns, dual, spec, self.negative)

    @property
    def second_scale(self) -> str | None:
        """Buffer beside "input_scale", if there is one: of x < 0, or zero points."""
        if self.input_grid is None or not any(self.input_grid.dual):
            return None
        return "input_zero" if self.input_grid.zero_point else "input_scale_negative"

    @property
    def two_products(self) -> tuple[bool, ...]:
        """Input segments that are multiplied twice, once per sign."""
        return self.dual if self.second_scale == "input_scale_negative" else (False,) * len(self.columns)

    @cached_property
    def branch_slices(self) -> tuple[slice, ...]:
        return slices(self.branches)

    def transform(self, name: str) -> Transform | None:
        return next((transform for transform in self.transforms if transform.name == name), None)

    def place(self, tensors: Mapping[str, Tensor] | None = None, branch: int = 0) -> Place:
        return Place(self.in_features, self.columns, self.branches, branch, tensors or {})

    def buffers(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of every buffer by name, without the bias."""
        weight, n = self.weight_spec, len(self.branches)
        width = packed_width(self.in_features, weight.bits)
        code = torch.int8 if weight.dtype == "int8" else torch.uint8
        blocks = len(self.weight_rows), len(self.weight_columns)
        found: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "codes": ((self.out_features, width), code),
            **scale_buffers(weight, *blocks, n),
        }
        if self.scheme.static_input:
            shape = (n, len(self.input_columns))
            found["input_scale"] = (shape, torch.float32)
            if self.second_scale is not None:
                found[self.second_scale] = (shape, torch.float32)
        if self.folded:
            found["folded"] = ((self.in_features,), torch.float32)
        if self.folded_rows:
            count = sum(stop - start for start, stop, _ in self.folded_rows)
            found["folded_rows"] = ((count,), torch.float32)
        for transform in self.transforms:
            own = transform.buffers(self.place())
            taken = own.keys() & (found.keys() | {"bias"})
            if taken:
                raise ValueError(
                    f"transform {transform.name!r} names a buffer {min(taken)!r}, which is taken; rename it"
                )
            found.update(own)
        return found

    def to_dict(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["scheme"] = self.scheme.to_dict()
        values["transforms"] = [registry.to_dict(transform) for transform in self.transforms]
        for key in ("folded", "folded_rows"):  # younger than the first files, which stay as they were
            if not values[key]:
                del values[key]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], asker: str = "a layer") -> Layout:
        """Inverse of `to_dict`; reads version 1 too.

        Args:
            asker: whose layout it is, for messages.

        Raises:
            QuantizationError: a transform is not registered.
        """
        if "transforms" not in values:
            values = _from_first_version(values)
        for side, spec in values["scheme"].items():
            missing = {"dtype", "granularity", "group_size", "dynamic"} - set(spec or ())
            if spec is not None and missing:
                raise ValueError(f"{asker}: its {side} format has no {min(missing)!r}")
        if "input" not in values["scheme"]:
            raise ValueError(f"{asker}: it has no input format, not even null")
        if not isinstance(values["transforms"], list):
            raise ValueError(f"{asker}: its transforms are {values['transforms']!r:.60}, which is no list")
        tuples = {key: tuple(values[key]) for key in ("rows", "columns", "dual", "branches")}
        tuples["folded_rows"] = tuple(map(tuple, values.get("folded_rows", ())))
        transforms = tuple(registry.from_dict("transform", entry, asker=asker) for entry in values["transforms"])
        parts = {"scheme": QuantScheme.from_dict(values["scheme"]), "transforms": transforms}
        return cls(**{**values, **tuples, **parts})


def _from_first_version(values: Mapping[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in values.items() if key not in ("smooth", "rotate", "ranks", "half")}
    transforms: list[dict[str, Any]] = []
    if values["smooth"]:
        transforms.append({"name": "smoothing"})
    if values["rotate"]:
        transforms.append({"name": "rotation"})
    if values["ranks"]:
        transforms.append({"name": "low_rank", "ranks": values["ranks"], "half": values["half"]})
    return {**rest, "transforms": transforms}


def slices(sizes: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(stop - size, stop) for size, stop in zip(sizes, accumulate(sizes), strict=True))
