"""Smoothing of a whole layer, every segment with its own α."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from segquant.errors import QuantizationError
from segquant.numerics.layout import slices
from segquant.observers.stats import HeldOut, InputStats
from segquant.optimizers.balance import balance
from segquant.optimizers.headroom import MARGINS, best_margin
from segquant.optimizers.protocol import Problem
from segquant.optimizers.simulation import BlockSimulation
from segquant.optimizers.smooth import (
    ALPHAS,
    DEFAULT_ALPHA,
    FEW_MARGINS,
    Choice,
    Errors,
    Rule,
    alpha_errors,
    best_alpha,
    smooth_split,
    smoothquant_rule,
)
from segquant.optimizers.ties import tie, tie_rule

log = logging.getLogger(__name__)

SEARCH, SEARCH_LAYER = "search", "search_layer"
HELD_OUT, SEEN = ALPHA_ROWS = "held_out", "seen"
FEW_ROWS, FEW_CALLS = 1024, 128
"""Below either the range that was seen says little about fresh rows: margins are tried."""
SEEN_ROWS = 256
"""Most rows that judge α without being held out."""
HELD_CALLS = 32
"""Calls to hold out, over several splits if need be, where static scales can clip what a call brings."""
HELD_ROWS = 128
"""Rows to hold out in all, over several splits if need be."""


Block = tuple[int, int]
"""Output branch and input segment."""
Alphas = Mapping[Block, float | None]
"""α of every block; None: it is not smoothed."""
Table = tuple[tuple[float | None, ...], ...]
"""The same to write down: for every branch the α of its input segments."""


@dataclass(frozen=True)
class Scaling:
    """How an optimizer finds a smoothing vector.

    Args:
        alpha: in [0, 1], or of every block, or how it is searched; None: no α.
        weight_alone: judge α by the rounded weight alone.
        rank_share: a branch's rank in the search.
        balances: PTQ4DiT's rule.
        seen: α is judged on rows that set the ranges too.
        none: no smoothing is among the choices of a search.
    """

    alpha: float | str | Table | None = None
    rule: Rule = smoothquant_rule
    weight_alone: bool = False
    rank_share: float = 0.0
    balances: bool = False
    seen: bool = False
    none: bool = True

    @property
    def scales(self) -> bool:
        """Whether there is a vector at all."""
        return self.balances or self.alpha is not None


def find_scales(problem: Problem, scaling: Scaling) -> tuple[Tensor, Tensor, Alphas]:
    """Every block's own α, or one per layer if that says "search_layer"; known α are not searched.

    Returns:
        smoothing vectors [branches, in], headroom of static scales [branches, input segments], α by block.
    """
    weight, layout, stats = problem.weight, problem.layout, stats_of(problem)
    vectors = torch.ones(len(layout.branches), layout.in_features, dtype=torch.float32, device=weight.device)
    margin = torch.ones(len(layout.branches), len(layout.columns), dtype=torch.float32, device=weight.device)
    whole = _everything(stats)
    choices = _choices(problem, scaling)
    for (branch, index), choice in choices.items():
        margin[branch, index] = choice.margin
        vector = vector_of(problem, scaling, (branch, index), whole, choice.alpha)
        if vector is not None:
            vectors[branch, slices(layout.columns)[index]] = vector
    return vectors, margin, {block: choice.alpha for block, choice in choices.items()}


def vector_of(problem: Problem, scaling: Scaling, block: Block, whole: HeldOut, alpha: float | None) -> Tensor | None:
    """The smoothing of one block by the ranges of `whole`; None without."""
    layout = problem.layout
    rows, columns = layout.branch_slices[block[0]], slices(layout.columns)[block[1]]
    largest = problem.weight[rows, columns].abs().amax(0)
    if scaling.balances:
        salience = tie(_salience(stats_of(problem))[columns], layout.taps)
        return balance(salience, tie(largest, layout.taps))
    return None if alpha is None else tie_rule(scaling.rule, layout.taps)(_cut(whole, columns), largest, alpha)


def stats_of(problem: Problem) -> InputStats:
    assert problem.stats is not None
    return problem.stats


def margins_of(problem: Problem) -> tuple[float, ...]:
    """Factors of static ranges to choose from."""
    if not problem.layout.scheme.static_input:
        return (1.0,)
    if not isinstance(problem.headroom, str):
        return (1.0 + problem.headroom,)
    stats = stats_of(problem)
    few = stats.rows < FEW_ROWS or stats.calls < FEW_CALLS or problem.hidden  # whose range is that of a sample
    return MARGINS if few else (1.0,)


def _choices(problem: Problem, scaling: Scaling) -> dict[Block, Choice]:
    stats, alphas, margins = stats_of(problem), problem.known, margins_of(problem)
    blocks = _blocks(problem)
    if alphas is None and not isinstance(scaling.alpha, str):
        alphas = _given(problem, scaling.alpha)
    if alphas is not None and len(margins) == 1:
        return {block: Choice(alphas[block], margins[0]) for block in blocks}
    if alphas is not None:
        found = {block: Choice(alphas[block]) for block in blocks}
    else:
        found = _by_alpha(problem, scaling, blocks, margins)
    headroom = _Headroom(problem, scaling, margins)
    found = {block: replace(choice, margin=headroom.of(block, choice.alpha)) for block, choice in found.items()}
    log.debug("%s: %s", stats.name, {block: (choice.alpha, choice.margin) for block, choice in found.items()})
    return found


def walked(problem: Problem, scaling: Scaling) -> Table:
    """α of every block as a search finds it, but downhill from DEFAULT_ALPHA: about half the α are tried.

    Without the vectors and the headroom that go with it.
    """
    found, layout = _by_alpha(problem, scaling, _blocks(problem), margins_of(problem), walks=True), problem.layout
    return tuple(
        tuple(found[branch, index].alpha for index in range(len(layout.columns)))
        for branch in range(len(layout.branches))
    )


def _blocks(problem: Problem) -> list[Block]:
    layout = problem.layout
    return [(branch, index) for branch in range(len(layout.branches)) for index in range(len(layout.columns))]


def _given(problem: Problem, alpha: float | Table | None) -> Alphas:
    """One α for all blocks, or every block's from a table."""
    if not isinstance(alpha, tuple):
        return dict.fromkeys(_blocks(problem), None if alpha is None else float(alpha))
    layout = problem.layout
    sizes, wanted = [len(row) for row in alpha], [len(layout.columns)] * len(layout.branches)
    if sizes != wanted:
        raise QuantizationError(
            f"{problem.name}: alpha has rows of {sizes} values, and the layer's output and input are cut in "
            f"{len(layout.branches)} x {len(layout.columns)} blocks; give it rows of {wanted}, or 'search'"
        )
    return {(branch, index): value for branch, row in enumerate(alpha) for index, value in enumerate(row)}


def _by_alpha(
    problem: Problem, scaling: Scaling, blocks: Sequence[Block], margins: Sequence[float], walks: bool = False
) -> dict[Block, Choice]:
    """The α of least error for every block."""
    stats, few = stats_of(problem), margins if len(margins) == 1 else FEW_MARGINS
    if scaling.seen:
        splits, few = [seen(stats)], margins[:1]  # no margin clips a row that set the range
    else:
        static = problem.layout.scheme.static_input and not scaling.weight_alone
        fit = problem.hidden or problem.ranges.input_rows
        splits = stats.held_out(rows=HELD_ROWS, calls=HELD_CALLS if static else 1, fit=fit)
    if not splits:
        return dict.fromkeys(blocks, Choice(DEFAULT_ALPHA))
    walks = walks and scaling.alpha != SEARCH_LAYER  # whose blocks are judged at the same α
    searches = {block: _Search(problem, scaling, block, splits) for block in blocks}
    errors = {block: search.downhill(few) if walks else search.errors(few) for block, search in searches.items()}
    if scaling.alpha == SEARCH_LAYER:
        errors = dict.fromkeys(blocks, _total(list(errors.values())))
    return {block: Choice(best_alpha(entry), errors=entry) for block, entry in errors.items()}


class _Headroom:
    """Headroom of static scales, block by block."""

    def __init__(self, problem: Problem, scaling: Scaling, margins: Sequence[float]) -> None:
        self.problem, self.scaling, self.margins = problem, scaling, margins
        self.parts = [] if len(margins) == 1 else [seen(stats_of(problem)), *stats_of(problem).by_fold()]

    def of(self, block: Block, alpha: float | None) -> float:
        if not self.parts:
            return self.margins[0]
        problem, layout, stats = self.problem, self.problem.layout, stats_of(self.problem)
        rows, columns = layout.branch_slices[block[0]], slices(layout.columns)[block[1]]
        weight, parts = problem.weight[rows, columns], [_cut(part, columns) for part in self.parts]
        vector = vector_of(problem, self.scaling, block, self.parts[0], alpha)
        if vector is not None:
            weight, parts = weight * vector, [smooth_split(part, vector) for part in parts]
        runs = BlockSimulation(problem, block, problem.ranges, self.scaling.rank_share)
        count = len(stats.sample) if runs.looks_at_rows else stats.rows
        return best_margin(runs, weight, parts[0], parts[1:], count, self.margins)


def seen(stats: InputStats) -> HeldOut:
    """All ranges, and rows of the sample that set them, evenly taken from all folds."""
    sample = stats.sample
    rows = sample[:: -(-len(sample) // SEEN_ROWS)]
    return replace(_everything(stats), rows=rows, calls=stats.calls, fit=sample)


class _Search:
    def __init__(self, problem: Problem, scaling: Scaling, block: Block, splits: Sequence[HeldOut]) -> None:
        layout = problem.layout
        rows, columns = layout.branch_slices[block[0]], slices(layout.columns)[block[1]]
        self.weight, self.rule = problem.weight[rows, columns], tie_rule(scaling.rule, layout.taps)
        self.splits = [_cut(split, columns) for split in splits]
        self.alphas: tuple[float | None, ...] = (None, *ALPHAS) if scaling.none else ALPHAS
        # AWQ judges α by the weight alone
        self.simulate = BlockSimulation(
            problem, block, problem.ranges.in_search(), scaling.rank_share, inputs=not scaling.weight_alone
        )

    def errors(self, margins: Sequence[float], alphas: Sequence[float | None] | None = None) -> Errors:
        alphas = self.alphas if alphas is None else alphas
        return alpha_errors(self.weight, self.splits, self.simulate, rule=self.rule, alphas=alphas, margins=margins)

    def downhill(self, margins: Sequence[float]) -> Errors:
        """Of no smoothing and DEFAULT_ALPHA, then of neighbours as long as they are better."""
        place = ALPHAS.index(DEFAULT_ALPHA)
        found = self.errors(margins, [alpha for alpha in self.alphas if alpha in (None, DEFAULT_ALPHA)])
        for step in (-1, 1):
            while 0 <= place + step < len(ALPHAS):
                near, here = ALPHAS[place + step], ALPHAS[place]
                if near not in found:
                    found |= self.errors(margins, [near])
                if found[near] >= found[here]:
                    break
                place += step
        return found


def _total(errors: Sequence[Errors]) -> Errors:
    return {key: sum(entry[key] for entry in errors) for key in errors[0]}


def _salience(stats: InputStats) -> Tensor:
    assert stats.salience is not None
    return stats.salience


def _everything(stats: InputStats) -> HeldOut:
    none = stats.positive.new_zeros(0, stats.in_features)
    return HeldOut(stats.positive, stats.negative, none, mean_abs=stats.mean_abs)


def _cut(split: HeldOut, columns: slice) -> HeldOut:
    return replace(
        split,
        positive=split.positive[columns],
        negative=split.negative[columns],
        rows=split.rows[:, columns],
        fit=None if split.fit is None else split.fit[:, columns],
        mean_abs=None if split.mean_abs is None else split.mean_abs[columns],
    )
