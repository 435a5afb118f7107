"""Optimizers that scale input channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from segquant.checks import check_fields
from segquant.numerics.formats import check_choice
from segquant.numerics.transform import Transform
from segquant.optimizers.protocol import Fitted, Optimizer, Problem
from segquant.optimizers.search import SEARCH, SEARCH_LAYER, Scaling, find_scales
from segquant.optimizers.smooth import awq_rule
from segquant.registry import register
from segquant.transforms.smoothing import Smoothing

STATS = frozenset({"stats"})


def fit_scales(problem: Problem, scaling: Scaling, doubtful: bool) -> Fitted:
    """Smoothing vectors by α, and the headroom of static scales."""
    headroom = problem.layout.scheme.static_input and problem.ranges.wants_headroom(problem.hidden, doubtful)
    if not (scaling.scales or headroom):
        return Fitted()
    vectors, margin, alphas = find_scales(problem, scaling, headroom)
    if not scaling.scales:
        return Fitted(margin=margin, found=alphas)
    return Fitted((Smoothing(),), {"smooth": vectors}, margin, alphas)


@register
@dataclass(frozen=True)
class NoOptimizer(Optimizer):
    """Inputs and weights as they come; only static scales may get headroom."""

    name: ClassVar[str] = "none"

    def fit(self, problem: Problem) -> Fitted:
        return fit_scales(problem, Scaling(), self.doubts(len(problem.layout.columns)))


@register
@dataclass(frozen=True)
class SmoothQuant(Optimizer):
    """SmoothQuant (arXiv 2211.10438).

    Args:
        alpha: in [0, 1]; "search" (0.0, 0.1 … 1.0, and none) per segment, or "search_layer" for the whole layer.
    """

    alpha: float | str = SEARCH
    name: ClassVar[str] = "smooth"
    transforms: ClassVar[tuple[Transform, ...]] = (Smoothing(),)

    def __post_init__(self) -> None:
        check_fields(self)
        check_alpha(self.alpha)

    @property
    def needs(self) -> frozenset[str]:
        return STATS

    @property
    def search_key(self) -> Any:
        return self.name, self.alpha

    def scaling(self, problem: Problem) -> Scaling:
        """How α makes a smoothing vector, and how it is judged."""
        return Scaling(self.alpha)

    def fit(self, problem: Problem) -> Fitted:
        return fit_scales(problem, self.scaling(problem), self.doubts(len(problem.layout.columns)))

    def doubts(self, segments: int) -> bool:
        """Also for a searched α."""
        return isinstance(self.alpha, str) or super().doubts(segments)

    def without_smoothing(self) -> Optimizer | None:
        return NoOptimizer()


@register
@dataclass(frozen=True)
class Awq(SmoothQuant):
    """AWQ (arXiv 2306.00978): scales mean|X_j|^α, α by the error of the rounded weight alone."""

    name: ClassVar[str] = "awq"

    def scaling(self, problem: Problem) -> Scaling:
        return Scaling(self.alpha, awq_rule, weight_alone=True)

    def doubts(self, segments: int) -> bool:
        """Never: the paper's own maximum stays."""
        return False


@register
@dataclass(frozen=True)
class Balance(Optimizer):
    """PTQ4DiT's channel salience balancing (arXiv 2405.16005)."""

    name: ClassVar[str] = "balance"
    needs: ClassVar[frozenset[str]] = STATS | {"salience"}
    transforms: ClassVar[tuple[Transform, ...]] = (Smoothing(),)

    def fit(self, problem: Problem) -> Fitted:
        return fit_scales(problem, Scaling(balances=True), self.doubts(len(problem.layout.columns)))

    def without_smoothing(self) -> Optimizer | None:
        return NoOptimizer()


def check_alpha(alpha: float | str) -> None:
    if isinstance(alpha, str):
        check_choice("alpha", alpha, (SEARCH, SEARCH_LAYER))
    elif not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1] or be 'search' or 'search_layer', not {alpha}")
