"""All transforms of one branch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from segquant.modules.state import own_state
from segquant.numerics.layout import Layout
from segquant.numerics.transform import Place, Transform


@dataclass(frozen=True)
class Chain:
    """Transforms in the order they act: x_n @ weight(w).T + Σ beside_i(x_{i−1}) is the float product.

    Methods as in `Transform`.
    """

    transforms: tuple[Transform, ...]
    place: Place

    def rows(self, x: Tensor) -> Tensor:
        for transform in self.transforms:
            x = transform.rows(x, self.place)
        return x

    def run(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Transformed inputs, and what is added to the product."""
        beside = []
        for transform in self.transforms:
            extra = transform.beside(x, self.place)
            if extra is not None:
                beside.append(extra)
            x = transform.rows(x, self.place)
        return x, beside

    def weight(self, weight: Tensor) -> Tensor:
        for transform in self.transforms:
            weight = transform.weight(weight, self.place)
        return weight

    def undo(self, weight: Tensor) -> Tensor:
        for transform in reversed(self.transforms):
            weight = transform.undo(weight, self.place)
        return weight

    def gram(self, gram: Tensor) -> Tensor:
        for transform in self.transforms:
            gram = transform.gram(gram, self.place)
        return gram

    def extremes(self, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor] | None:
        for transform in self.transforms:
            found = transform.extremes(positive, negative, self.place)
            if found is None:
                return None
            positive, negative = found
        return positive, negative


def chain_of(layout: Layout, tensors: Mapping[str, Tensor], branch: int) -> Chain:
    return Chain(layout.transforms, layout.place(tensors, branch))


def hides_range(transforms: Sequence[Transform]) -> bool:
    """Whether, after some transform, only the rows tell the range of inputs."""
    return any(type(transform).extremes is Transform.extremes for transform in transforms)


@own_state()
def undo_all(layout: Layout, tensors: Mapping[str, Tensor], weight: Tensor) -> list[Tensor]:
    """Every branch's float weight, from the weight [out, in] in the codes' space."""
    return [chain_of(layout, tensors, b).undo(weight[rows]) for b, rows in enumerate(layout.branch_slices)]


@own_state()
def apply_all(layout: Layout, tensors: Mapping[str, Tensor], weight: Tensor) -> list[Tensor]:
    """Every branch's weight in the codes' space, from a float one [out, in]."""
    return [chain_of(layout, tensors, b).weight(weight[rows]) for b, rows in enumerate(layout.branch_slices)]
