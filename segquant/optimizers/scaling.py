"""Optimizers that scale input channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from segquant.bounds import check_most
from segquant.checks import check_fields
from segquant.numerics.formats import check_choice
from segquant.numerics.transform import Transform
from segquant.optimizers.protocol import Fitted, Optimizer, Problem
from segquant.optimizers.search import (
    ALPHA_ROWS,
    HELD_OUT,
    SEARCH,
    SEARCH_LAYER,
    SEEN,
    Scaling,
    Table,
    find_scales,
)
from segquant.optimizers.smooth import awq_rule
from segquant.registry import register
from segquant.transforms.smoothing import Smoothing

STATS = frozenset({"stats"})


def fit_scales(problem: Problem, scaling: Scaling) -> Fitted:
    """Smoothing vectors by α, and the headroom of static scales."""
    if not (scaling.scales or (problem.layout.scheme.static_input and problem.headroom)):
        return Fitted()
    vectors, margin, alphas = find_scales(problem, scaling)
    if not scaling.scales:
        return Fitted(margin=margin, found=alphas)
    return Fitted((Smoothing(),), {"smooth": vectors}, margin, alphas)


@register
@dataclass(frozen=True)
class NoOptimizer(Optimizer):
    """Inputs and weights as they come; only static scales may get headroom."""

    name: ClassVar[str] = "none"

    def fit(self, problem: Problem) -> Fitted:
        return fit_scales(problem, Scaling())


@register
@dataclass(frozen=True)
class SmoothQuant(Optimizer):
    """SmoothQuant (arXiv 2211.10438).

    Args:
        alpha: in [0, 1]; "search" (0.0, 0.1 … 1.0) per segment, or "search_layer" for the whole layer; or what a
            search found, a list for every output segment with the α of every input segment (None: not smoothed).
        alpha_rows: what judges a searched α: rows "held_out" from those that set the ranges, or rows "seen", as in the
            papers.
        alpha_none: no smoothing is among the choices of a search.
    """

    alpha: float | str | Table = SEARCH
    alpha_rows: str = field(default=HELD_OUT, kw_only=True)
    alpha_none: bool = field(default=True, kw_only=True)
    name: ClassVar[str] = "smooth"
    transforms: ClassVar[tuple[Transform, ...]] = (Smoothing(),)

    def __post_init__(self) -> None:
        check_fields(self)
        if isinstance(self.alpha, Sequence) and not isinstance(self.alpha, str):  # lists, as a file has them
            object.__setattr__(self, "alpha", tuple(map(tuple, self.alpha)))
        check_alpha(self.alpha)
        check_most(self)
        check_choice("alpha_rows", self.alpha_rows, ALPHA_ROWS)

    @property
    def needs(self) -> frozenset[str]:
        return STATS

    @property
    def search_key(self) -> Any:
        return self.name, self.alpha, self.alpha_rows, self.alpha_none

    def scaling(self, problem: Problem) -> Scaling:
        """How α makes a smoothing vector, and how it is judged."""
        return Scaling(self.alpha, seen=self.alpha_rows == SEEN, none=self.alpha_none)

    def fit(self, problem: Problem) -> Fitted:
        return fit_scales(problem, self.scaling(problem))

    def without_smoothing(self) -> Optimizer | None:
        return NoOptimizer()


@register
@dataclass(frozen=True)
class Awq(SmoothQuant):
    """AWQ (arXiv 2306.00978): scales mean|X_j|^α, α by the error of the rounded weight alone."""

    name: ClassVar[str] = "awq"

    def scaling(self, problem: Problem) -> Scaling:
        return replace(super().scaling(problem), rule=awq_rule, weight_alone=True)


@register
@dataclass(frozen=True)
class Balance(Optimizer):
    """PTQ4DiT's channel salience balancing (arXiv 2405.16005)."""

    name: ClassVar[str] = "balance"
    needs: ClassVar[frozenset[str]] = STATS | {"salience"}
    transforms: ClassVar[tuple[Transform, ...]] = (Smoothing(),)

    def fit(self, problem: Problem) -> Fitted:
        return fit_scales(problem, Scaling(balances=True))

    def without_smoothing(self) -> Optimizer | None:
        return NoOptimizer()


def check_alpha(alpha: float | str | Table) -> None:
    if isinstance(alpha, str):
        check_choice("alpha", alpha, (SEARCH, SEARCH_LAYER))
        return
    values = [value for row in alpha for value in row if value is not None] if isinstance(alpha, tuple) else [alpha]
    for value in values:
        if not 0 <= value <= 1:
            raise ValueError(f"alpha must lie in [0, 1] or be 'search' or 'search_layer', not {value}")
