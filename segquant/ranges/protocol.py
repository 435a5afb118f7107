"""Range: where scales come from."""

from __future__ import annotations

from typing import ClassVar, Protocol

from torch import Tensor

from segquant.numerics.input_grid import InputGrid


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
            def weight_scale(self, weight, dtype, rows, columns, importance=None):
                return self.share * super().weight_scale(weight, dtype, rows, columns)
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
        dtype: str,
        rows: tuple[int, ...],
        columns: tuple[int, ...],
        importance: Tensor | None = None,
    ) -> Tensor:
        """Positive scales of a weight's blocks: float32 (float64 for a float64 weight), [len(rows), len(columns)].

        Args:
            weight: float [out, in].
            rows: sizes of blocks, summing to out.
            columns: likewise to in.
            importance: mean square of the input [in].
        """
        ...

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

    def wants_headroom(self, hidden: bool, doubtful: bool) -> bool:
        """Whether static scales get room beyond the range, as held-out rows show it.

        `hidden`: only sampled rows tell the range; `doubtful`: see `Optimizer.doubts`.
        """
        return False

    def in_search(self) -> Range:
        """This range, or a cheaper one, while an optimizer searches."""
        return self
