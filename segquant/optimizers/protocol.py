"""Optimizer: works on a layer before its weight is rounded. Rotation: turns its input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from segquant.numerics.layout import Layout
from segquant.numerics.transform import Transform
from segquant.numerics.weight_grid import WeightScales
from segquant.observers.stats import InputStats
from segquant.ranges.protocol import Range
from segquant.transforms.chain import hides_range


@dataclass(frozen=True)
class Problem:
    """One layer, as an optimizer sees it.

    Args:
        weight: float32 [out, in].
        layout: cuts, formats, planned transforms.
        stats: of its input, if needed.
        turn: the rotation after the optimizer's transforms.
        turn_tensors: its buffers.
        known: `Fitted.found` of an earlier fit with the same `search_key`.
        headroom: of static scales, see `Method.headroom`.
    """

    weight: Tensor
    layout: Layout
    stats: InputStats | None
    ranges: Range
    turn: tuple[Transform, ...] = ()
    turn_tensors: Mapping[str, Tensor] = field(default_factory=dict)
    seed: int = 0
    name: str = "linear"
    known: Any = None
    headroom: float | str = 0.0

    @property
    def hidden(self) -> bool:
        """Whether only sampled rows tell the input's range."""
        return hides_range(self.turn)


@dataclass(frozen=True)
class Fitted:
    """What an optimizer found for a layer.

    Args:
        transforms: in the order in which they act.
        tensors: their buffers.
        margin: headroom of static scales over the range seen, [branches, input segments].
        found: see `Problem.known`.
    """

    transforms: tuple[Transform, ...] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    margin: Tensor | None = None
    found: Any = None


@dataclass(frozen=True)
class Branch:
    """One branch of a layer, ready to be rounded.

    Args:
        weight: float32 [rows, in], transformed.
        gram: XᵀX of the transformed input [in, in], if needed.
        round: gives a weight [rows, in] on its grid, and the grid's scales.
    """

    weight: Tensor
    gram: Tensor | None
    round: Callable[[Tensor], tuple[Tensor, WeightScales]]


@dataclass(frozen=True)
class Rounded:
    """A layer's weight on its grid and the scales, by branch; transforms that were added."""

    quantized: list[Tensor]
    scales: list[WeightScales]
    transforms: tuple[Transform, ...] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class Optimizer(Protocol):
    """What is done to a layer before its weight is rounded.

    To add one: derive a frozen dataclass from this class, decorate it with `segquant.register`, give it a `name`,
    what it `needs`, its `transforms`, and `fit`; `Method.of(…, optimizer="mine")` takes it. Its fields are its
    settings; where another optimizer has a field of the same name, it should mean the same.

        @segquant.register
        @dataclass(frozen=True)
        class Root(segquant.Optimizer):
            name: ClassVar[str] = "root"
            needs: ClassVar[frozenset[str]] = frozenset({"stats"})
            transforms: ClassVar[tuple[Transform, ...]] = (Smoothing(),)
            def fit(self, problem):
                stats, rows = problem.stats, len(problem.layout.branches)
                vector = torch.maximum(stats.positive, stats.negative).clamp_min(1e-3).sqrt()
                return Fitted(self.transforms, {"smooth": vector.expand(rows, -1).contiguous()})

    A convolution's columns are the taps of its channels: all `layout.taps` columns of a channel must be transformed
    alike, or no kernel could apply the transform before the window (`optimizers.ties` helps).
    """

    slot: ClassVar[str] = "optimizer"
    name: ClassVar[str]

    @property
    def needs(self) -> frozenset[str]:
        """Of "stats" (ranges and sampled rows), "gram" (XᵀX), "salience" (peaks by timestep)."""
        return frozenset()

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """What `fit` will return, for layouts and costs."""
        return ()

    @property
    def apart(self) -> bool:
        """Whether output segments are transformed apart."""
        return bool(self.transforms)

    @property
    def search_key(self) -> Any:
        """What decides `fit`, hashable: candidates with the same key share one."""
        return self

    def fit(self, problem: Problem) -> Fitted:
        """The layer's transforms with their tensors."""
        ...

    def round(self, branches: Iterable[Branch], problem: Problem, fitted: Fitted) -> Rounded:
        """Round every branch, in order; override it to split something off first."""
        found = [branch.round(branch.weight) for branch in branches]
        return Rounded([quantized for quantized, _ in found], [scale for _, scale in found])

    def without_smoothing(self) -> Optimizer | None:
        """The same for inputs that need no smoothing; None if it has none, or more than a vector from `fit`.

        Where there is one, `fit` gives a buffer "smooth" (see `Smoothing`) and nothing else for layers that share an
        input, taken as one layer, and `round` gets it too.
        """
        return None

    def added(self, layout: Layout, name: str) -> tuple[Transform, ...]:
        """Transforms that `round` will add to a layer of one branch; QuantizationError if it would refuse."""
        return ()


class Rotation(Protocol):
    """Turns the (optimized) input, and the weight with it, by an orthogonal matrix that no data decides.

    To add one: as an `Optimizer`, with `transform` and `fit`; `Method.of(…, rotate="mine")` takes it.
    """

    slot: ClassVar[str] = "rotation"
    name: ClassVar[str]

    @property
    def transform(self) -> Transform:
        """What turns the input; its `mixes` says whether input segments and signs are lost."""
        ...

    def fit(self, layout: Layout, seed: int, device: torch.device) -> Mapping[str, Tensor]:
        """The transform's buffers."""
        ...
