"""Range: where scales come from."""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
from torch import Tensor

from segquant.numerics.formats import QuantSpec
from segquant.numerics.input_grid import InputGrid
from segquant.numerics.weight_grid import WeightScales, offset_scales, symmetric_scales
from segquant.ranges.blocks import block_max


class Range(Protocol):
    """What a scale is taken from: the maximum, a percentile, the least squared error, ….

    To add one: derive a frozen dataclass from this class, decorate it with `segquant.register`, give it a `name` and
    the methods below; `Method.of(…, ranges="mine")` takes it. Its fields are its settings. Derive from `Amax`
    instead to change one side alone.

        @segquant.register
        @dataclass(frozen=True)
        class Half(segquant.ranges.Amax):
            share: float = 0.5
            name: ClassVar[str] = "half"
            def weight_scale(self, weight, spec, rows, columns, importance=None):
                return self.share * super().weight_scale(weight, spec, rows, columns)
    """

    slot: ClassVar[str] = "range"
    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    """"stats" if `weight_scale` wants `importance`."""
    input_rows: ClassVar[bool] = True
    """Whether `input_range` looks at sampled rows."""

    def weight_scale(
        self,
        weight: Tensor,
        spec: QuantSpec,
        rows: tuple[int, ...],
        columns: tuple[int, ...],
        importance: Tensor | None = None,
    ) -> Tensor:
        """Scales of a weight's blocks: float32 (float64 for a float64 weight), [len(rows), len(columns)].

        They are positive, but for scale_dtype "q0", and are rounded to their dtype afterwards.

        Args:
            weight: float [out, in].
            spec: a format without a zero point.
            rows: sizes of blocks, summing to out.
            columns: likewise to in.
            importance: mean square of the input [in].
        """
        ...

    def weight_extremes(
        self,
        weight: Tensor,
        spec: QuantSpec,
        rows: tuple[int, ...],
        columns: tuple[int, ...],
        importance: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Of a format with a zero point: the largest and the negated least value of every block, as `weight_scale`."""
        return block_max(weight, rows, columns), block_max(-weight, rows, columns)

    def weight_scales(
        self,
        weight: Tensor,
        spec: QuantSpec,
        rows: tuple[int, ...],
        columns: tuple[int, ...],
        importance: Tensor | None = None,
    ) -> WeightScales:
        """The scales as a layer keeps them; see `weight_scale` and `weight_extremes`.

        Raises:
            QuantizationError: a scale is beyond its dtype.
        """
        if spec.zero_point:
            return offset_scales(spec, *self.weight_extremes(weight, spec, rows, columns, importance))
        scale = self.weight_scale(weight, spec, rows, columns, importance)
        used = torch.ones((), dtype=torch.bool, device=scale.device)
        if spec.scale_dtype != "float32":
            used = block_max(weight.abs(), rows, columns) > 0
        return symmetric_scales(spec, scale, used)

    def input_range(
        self,
        positive: Tensor,
        negative: Tensor,
        rows: Tensor | None,
        grid: InputGrid,
        importance: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Range of a static input per piece: largest value and magnitude of the smallest, [pieces] each, at least 0.

        Args:
            positive: largest values by channel [in], in the quantized space.
            negative: magnitudes of the smallest ones.
            rows: a sample [n, in], if `input_rows`.
            grid: the input's pieces and their format.
            importance: squared column norms of the weight [in].
        """
        ...

    def in_search(self) -> Range:
        """This range, or a cheaper one, while an optimizer searches."""
        return self

    def coarse(self) -> Range:
        """This range, or a cheaper one nearly as good, while formats are compared."""
        return self
