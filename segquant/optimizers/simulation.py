"""One block of a layer, quantized as it would be: what a search judges α and headroom by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from segquant.numerics.fake_quant import round_weight
from segquant.numerics.layout import group_pieces
from segquant.numerics.transform import Place
from segquant.observers.stats import HeldOut
from segquant.optimizers.protocol import Problem
from segquant.optimizers.smooth import Layer
from segquant.optimizers.svd import random_low_rank
from segquant.ranges.protocol import Range
from segquant.transforms.chain import Chain


@dataclass(frozen=True)
class Inputs:
    """A split in the space where inputs are quantized: as in `HeldOut`; `shift` has been taken off."""

    rows: Tensor
    fit: Tensor | None
    positive: Tensor
    negative: Tensor
    shift: Tensor | None


class BlockSimulation:
    """One block (output branch × input segment) of the quantized layer, rounded to nearest.

    Args:
        block: the branch's and the segment's number.
        rank_share: rank of the whole branch; 0: no low-rank factors.
        inputs: whether inputs are rounded too.
    """

    def __init__(
        self, problem: Problem, block: tuple[int, int], ranges: Range, rank_share: float = 0.0, inputs: bool = True
    ) -> None:
        layout = problem.layout
        branch, index = block
        rows, width = layout.branches[branch], layout.columns[index]
        self.ranges, self.seed = ranges, problem.seed
        self.weight_spec = layout.weight_spec
        self.shifts = inputs and layout.dual[index] and layout.negative == "shift"
        cut = layout.rows if len(layout.branches) == 1 else (rows,)
        self.rows = cut if self.weight_spec.granularity == "tensor" else (1,) * rows
        group = self.weight_spec.group_size
        self.columns = group_pieces((width,), group) if group else (width,)
        alone = replace(layout, in_features=width, columns=(width,), dual=(layout.dual[index],), transforms=(), taps=1)
        self.grid = alone.input_grid if inputs else None
        share = rank_share * width / layout.in_features
        self.rank = max(1, round(share)) if rank_share else 0
        # a rotated input is not cut: the block is the whole input then
        self.turn = Chain(problem.turn, Place(width, (width,), (rows,), 0, problem.turn_tensors))
        self.hidden = problem.hidden

    def __call__(self, weight: Tensor) -> Layer:
        weight = self.turn.weight(weight)
        residual, factors, low_rank = weight, None, weight.new_zeros(())
        if self.rank:
            up, down = random_low_rank(weight, self.rank, self.seed)
            residual, factors = weight - up @ down, (up, down)
            low_rank = up @ down.sum(1)
        scales = self.ranges.weight_scales(residual, self.weight_spec, self.rows, self.columns)
        rounded = round_weight(residual, scales, self.rows, self.columns, self.weight_spec.dtype).T
        importance = weight.square().sum(0) if self.looks_at_rows else None

        def layer(split: HeldOut) -> Callable[[float], Tensor]:
            seen = self.inputs(split)
            rows, shift = seen.rows, seen.shift
            beside = None if shift is None else shift * (rounded.sum(0) + low_rank)
            ranges = self.ranges_of(seen, importance)
            branch = None if factors is None else (rows @ factors[1].T) @ factors[0].T

            def output(margin: float) -> Tensor:
                out = self.quantized(rows, ranges, margin) @ rounded
                if beside is not None:
                    out += beside
                return out if branch is None else out.add_(branch)

            return output

        return layer

    @property
    def looks_at_rows(self) -> bool:
        """Whether sampled rows set the range of inputs."""
        return self.hidden or self.ranges.input_rows

    @property
    def _static(self) -> bool:
        return self.grid is not None and not self.grid.spec.dynamic

    def importance(self, weight: Tensor) -> Tensor:
        """Squared column norms [in] of a weight [out, in], rotated as the input is."""
        return self.turn.weight(weight).square().sum(0)

    def inputs(self, split: HeldOut, shift: Tensor | None = None) -> Inputs:
        """A split's rows and ranges as the layer quantizes them; `shift`: where it is not the split's own."""
        if self.shifts and shift is None:
            shift = (split.positive.max() - split.negative.max()) / 2
        rows, fit, positive, negative = self.turn.rows(split.rows), None, split.positive, split.negative
        if self._static and self.looks_at_rows:
            assert split.fit is not None
            fit = self.turn.rows(split.fit)
            if self.hidden:
                positive, negative = extremes_of(fit)
        if shift is not None:
            rows, fit = rows - shift, None if fit is None else fit - shift
            positive, negative = (positive - shift).clamp_min(0), (negative + shift).clamp_min(0)
        return Inputs(rows, fit, positive, negative, shift)

    def ranges_of(self, seen: Inputs, importance: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """The range of static inputs; None if they are not."""
        if not self._static:
            return None
        assert self.grid is not None
        return self.ranges.input_range(seen.positive, seen.negative, seen.fit, self.grid, importance)

    def quantized(self, rows: Tensor, ranges: tuple[Tensor, Tensor] | None, margin: float = 1.0) -> Tensor:
        """Rows of `inputs` on the input's grid."""
        if self.grid is None:
            return rows
        static = None if ranges is None else self.grid.scales(ranges[0] * margin, ranges[1] * margin)
        return self.grid.quantize(rows, static)


def extremes_of(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Largest values and magnitudes of the smallest [in], at least 0, of rows [n, in]."""
    return rows.amax(0).clamp_min(0), (-rows.amin(0)).clamp_min(0)
