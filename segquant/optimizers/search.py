"""Smoothing of a whole layer, every segment with its own α."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from segquant.numerics.fake_quant import round_weight
from segquant.numerics.layout import group_pieces, slices
from segquant.numerics.transform import Place
from segquant.observers.stats import HeldOut, InputStats
from segquant.optimizers.balance import balance
from segquant.optimizers.protocol import Problem
from segquant.optimizers.smooth import (
    DEFAULT_ALPHA,
    MARGINS,
    Choice,
    Errors,
    Layer,
    Rule,
    alpha_errors,
    best_alpha,
    best_margin,
    few_of,
    smoothquant_rule,
)
from segquant.optimizers.svd import random_low_rank
from segquant.optimizers.ties import tie, tie_rule
from segquant.ranges.protocol import Range
from segquant.transforms.chain import Chain

log = logging.getLogger(__name__)

SEARCH, SEARCH_LAYER = "search", "search_layer"
FEW_ROWS, FEW_CALLS = 1024, 128
"""Below either the range that was seen says little about fresh rows: margins are tried."""
HELD_CALLS = 32
"""Calls to hold out, over several splits if need be, where static scales can clip what a call brings."""
HELD_ROWS = 128
"""Rows to hold out in all, over several splits if need be."""


Block = tuple[int, int]
"""Output branch and input segment."""
Alphas = Mapping[Block, float | None]
"""α of every block; None: it is not smoothed."""


@dataclass(frozen=True)
class Scaling:
    """How an optimizer finds a smoothing vector.

    Args:
        alpha: in [0, 1], or how it is searched; None: no α.
        weight_alone: judge α by the rounded weight alone.
        rank_share: a branch's rank in the search.
        balances: PTQ4DiT's rule.
    """

    alpha: float | str | None = None
    rule: Rule = smoothquant_rule
    weight_alone: bool = False
    rank_share: float = 0.0
    balances: bool = False

    @property
    def scales(self) -> bool:
        """Whether there is a vector at all."""
        return self.balances or self.alpha is not None


def find_scales(problem: Problem, scaling: Scaling, headroom: bool) -> tuple[Tensor, Tensor, Alphas]:
    """Every block's own α, or one per layer if that says "search_layer"; known α are not searched.

    Returns:
        smoothing vectors [branches, in], headroom of static scales [branches, input segments], α by block.
    """
    weight, layout, stats = problem.weight, problem.layout, stats_of(problem)
    vectors = torch.ones(len(layout.branches), layout.in_features, dtype=torch.float32, device=weight.device)
    margin = torch.ones(len(layout.branches), len(layout.columns), dtype=torch.float32, device=weight.device)
    whole = _everything(stats)
    choices = _choices(problem, scaling, headroom)
    for (branch, index), choice in choices.items():
        rows, columns = layout.branch_slices[branch], slices(layout.columns)[index]
        margin[branch, index] = choice.margin
        block = weight[rows, columns].abs().amax(0)
        if scaling.balances:
            salience = tie(_salience(stats)[columns], layout.taps)
            vectors[branch, columns] = balance(salience, tie(block, layout.taps))
        elif choice.alpha is not None:
            rule = tie_rule(scaling.rule, layout.taps)
            vectors[branch, columns] = rule(_cut(whole, columns), block, choice.alpha)
    return vectors, margin, {block: choice.alpha for block, choice in choices.items()}


def stats_of(problem: Problem) -> InputStats:
    assert problem.stats is not None
    return problem.stats


def _choices(problem: Problem, scaling: Scaling, headroom: bool) -> dict[Block, Choice]:
    layout, stats, alphas = problem.layout, stats_of(problem), problem.known
    blocks = [(branch, index) for branch in range(len(layout.branches)) for index in range(len(layout.columns))]
    few = stats.rows < FEW_ROWS or stats.calls < FEW_CALLS or problem.hidden  # whose range is that of a sample
    margins = MARGINS if few and headroom else (1.0,)
    if alphas is None and not isinstance(scaling.alpha, str):
        alphas = dict.fromkeys(blocks, None if scaling.alpha is None else float(scaling.alpha))
    if alphas is not None and len(margins) == 1:
        return {block: Choice(alphas[block]) for block in blocks}
    static = layout.scheme.static_input and (not scaling.weight_alone or len(margins) > 1)
    fit = problem.hidden or problem.ranges.input_rows
    splits = stats.held_out(rows=HELD_ROWS, calls=HELD_CALLS if static else 1, fit=fit)
    searches = {block: _Search(problem, scaling, block, splits) for block in blocks}
    if alphas is not None:
        return {block: Choice(alphas[block], searches[block].margin(alphas[block], margins)) for block in blocks}
    errors = {block: search.errors(few_of(margins)) for block, search in searches.items()}
    if scaling.alpha == SEARCH_LAYER:
        errors = dict.fromkeys(blocks, _total(list(errors.values())))
    found = {block: search.choose(errors[block], margins) for block, search in searches.items()}
    log.debug("%s: %s", stats.name, {block: (choice.alpha, choice.margin) for block, choice in found.items()})
    return found


class _Search:
    def __init__(self, problem: Problem, scaling: Scaling, block: Block, splits: Sequence[HeldOut]) -> None:
        layout = problem.layout
        rows, columns = layout.branch_slices[block[0]], slices(layout.columns)[block[1]]
        self.weight, self.rule = problem.weight[rows, columns], tie_rule(scaling.rule, layout.taps)
        self.splits = [_cut(split, columns) for split in splits]
        self.runs = BlockSimulation(problem, scaling, block, problem.ranges)
        # AWQ judges α by the weight alone
        self.simulate = BlockSimulation(
            problem, scaling, block, problem.ranges.in_search(), inputs=not scaling.weight_alone
        )

    def errors(self, margins: Sequence[float]) -> Errors:
        return alpha_errors(self.weight, self.splits, self.simulate, rule=self.rule, margins=margins)

    def choose(self, errors: Errors, margins: Sequence[float]) -> Choice:
        if not self.splits:
            return Choice(DEFAULT_ALPHA)
        alpha = best_alpha(errors)
        return Choice(alpha, self.margin(alpha, margins), errors)

    def margin(self, alpha: float | None, margins: Sequence[float]) -> float:
        return best_margin(self.weight, self.splits, self.runs, alpha, margins, rule=self.rule)


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


class BlockSimulation:
    """One block (output branch × input segment) of the quantized layer, rounded to nearest."""

    def __init__(self, problem: Problem, scaling: Scaling, block: Block, ranges: Range, inputs: bool = True) -> None:
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
        share = scaling.rank_share * width / layout.in_features
        self.rank = max(1, round(share)) if scaling.rank_share else 0
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
        importance = weight.square().sum(0) if self._looks_at_rows else None

        def layer(split: HeldOut) -> Callable[[float], Tensor]:
            shift = (split.positive.max() - split.negative.max()) / 2 if self.shifts else None
            beside = None if shift is None else shift * (rounded.sum(0) + low_rank)
            rows = self.turn.rows(split.rows)
            if shift is not None:
                rows = rows - shift
            ranges = self._ranges(split, importance, shift)
            branch = None if factors is None else (rows @ factors[1].T) @ factors[0].T

            def output(margin: float) -> Tensor:
                out = self._input(rows, ranges, margin) @ rounded
                if beside is not None:
                    out += beside
                return out if branch is None else out.add_(branch)

            return output

        return layer

    @property
    def _looks_at_rows(self) -> bool:
        return self.hidden or self.ranges.input_rows

    def _ranges(self, split: HeldOut, importance: Tensor | None, shift: Tensor | None) -> tuple[Tensor, Tensor] | None:
        if self.grid is None or self.grid.spec.dynamic:
            return None
        fit, positive, negative = None, split.positive, split.negative
        if self._looks_at_rows:
            assert split.fit is not None
            fit = self.turn.rows(split.fit)
        if self.hidden:
            assert fit is not None
            positive, negative = extremes_of(fit)
        if shift is not None:
            fit = None if fit is None else fit - shift
            positive, negative = (positive - shift).clamp_min(0), (negative + shift).clamp_min(0)
        return self.ranges.input_range(positive, negative, fit, self.grid, importance)

    def _input(self, rows: Tensor, ranges: tuple[Tensor, Tensor] | None, margin: float) -> Tensor:
        if self.grid is None:
            return rows
        static = None if ranges is None else self.grid.scales(ranges[0] * margin, ranges[1] * margin)
        return self.grid.quantize(rows, static)


def extremes_of(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Largest values and magnitudes of the smallest [in], at least 0, of rows [n, in]."""
    return rows.amax(0).clamp_min(0), (-rows.amin(0)).clamp_min(0)
