"""Smoothing of a whole layer: every segment with its own α, judged on the layer as it will run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from segquant.kernels.reference import expand_weight_scale, input_scales, quantize_input
from segquant.method.spec import SEARCH_LAYER, Method
from segquant.numerics import functional as F
from segquant.numerics.hadamard import hadamard_blocks, random_signs
from segquant.numerics.layout import Layout, group_pieces, slices
from segquant.numerics.transform import Transform
from segquant.observers.stats import HeldOut, InputStats
from segquant.optimizers.balance import balance
from segquant.optimizers.smooth import (
    DEFAULT_ALPHA,
    MARGINS,
    Choice,
    Errors,
    Layer,
    Rule,
    alpha_errors,
    awq_rule,
    best_alpha,
    best_margin,
    few_of,
    smoothquant_rule,
)
from segquant.optimizers.svd import random_low_rank, rank_share
from segquant.optimizers.ties import tie, tie_rule
from segquant.ranges.pick import needs_rows, pick_input_range, pick_weight_scale

log = logging.getLogger(__name__)

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
class Smoothing:
    """Smoothing vectors [branches, in], headroom of static scales [branches, columns], and the α they come from."""

    vectors: Tensor
    margin: Tensor
    alphas: Alphas


def smooth_layer(
    weight: Tensor, layout: Layout, method: Method, stats: InputStats, alphas: Alphas | None = None
) -> Smoothing:
    """Every output and input segment smoothed with its own α, unless the method says "search_layer".

    Args:
        weight: float32 [out, in].
        stats: of the input.
        alphas: to take instead of searching.
    """
    vectors = torch.ones(len(layout.branches), layout.in_features, device=weight.device)
    margin = torch.ones(len(layout.branches), len(layout.columns), device=weight.device)
    whole = _everything(stats)
    choices = _choices(weight, layout, method, stats, alphas)
    for (branch, index), choice in choices.items():
        rows, columns = layout.branch_slices[branch], slices(layout.columns)[index]
        margin[branch, index] = choice.margin
        block = weight[rows, columns].abs().amax(0)
        if method.optimizer == "balance":
            salience = tie(_salience(stats)[columns], layout.taps)
            vectors[branch, columns] = balance(salience, tie(block, layout.taps))
        elif choice.alpha is not None:
            rule = tie_rule(_rule(method), layout.taps)
            vectors[branch, columns] = rule(_cut(whole, columns), block, choice.alpha)
    return Smoothing(vectors, margin, {block: choice.alpha for block, choice in choices.items()})


def _choices(
    weight: Tensor, layout: Layout, method: Method, stats: InputStats, alphas: Alphas | None = None
) -> dict[Block, Choice]:
    """α and headroom of every block; the α of `alphas` if given."""
    blocks = [(branch, index) for branch in range(len(layout.branches)) for index in range(len(layout.columns))]
    few = stats.rows < FEW_ROWS or stats.calls < FEW_CALLS or method.rotate  # whose range is that of a sample
    margins = MARGINS if few and needs_margin(layout, method) else (1.0,)
    if alphas is None and not (method.smooths and method.searches and method.optimizer != "balance"):
        alphas = dict.fromkeys(blocks, _fixed_alpha(method))
    if alphas is not None and len(margins) == 1:
        return {block: Choice(alphas[block]) for block in blocks}
    static = layout.scheme.static_input and (method.optimizer != "awq" or len(margins) > 1)
    splits = stats.held_out(rows=HELD_ROWS, calls=HELD_CALLS if static else 1, fit=needs_rows(method))
    searches = {block: _Search(weight, layout, method, block, splits) for block in blocks}
    if alphas is not None:
        return {block: Choice(alphas[block], searches[block].margin(alphas[block], margins)) for block in blocks}
    errors = {block: search.errors(few_of(margins)) for block, search in searches.items()}
    if method.alpha == SEARCH_LAYER:
        errors = dict.fromkeys(blocks, _total(list(errors.values())))
    found = {block: search.choose(errors[block], margins) for block, search in searches.items()}
    log.debug("%s: %s", stats.name, {block: (choice.alpha, choice.margin) for block, choice in found.items()})
    return found


class _Search:
    """The search for one block (output branch × input segment)."""

    def __init__(
        self, weight: Tensor, layout: Layout, method: Method, block: tuple[int, int], splits: Sequence[HeldOut]
    ) -> None:
        rows, columns = layout.branch_slices[block[0]], slices(layout.columns)[block[1]]
        self.weight, self.rule = weight[rows, columns], tie_rule(_rule(method), layout.taps)
        self.splits = [_cut(split, columns) for split in splits]
        self.runs = BlockSimulation(layout, method, *block, weight.device)
        # shrunk ranges cost many times a rounding and hardly move the best α; AWQ judges it by the weight alone
        plain = replace(method, ranges="amax") if method.ranges == "mse" else method
        self.simulate = BlockSimulation(layout, plain, *block, weight.device, inputs=method.optimizer != "awq")

    def errors(self, margins: Sequence[float]) -> Errors:
        return alpha_errors(self.weight, self.splits, self.simulate, rule=self.rule, margins=margins)

    def choose(self, errors: Errors, margins: Sequence[float]) -> Choice:
        if not self.splits:
            return Choice(DEFAULT_ALPHA)
        alpha = best_alpha(errors)
        return Choice(alpha, self.margin(alpha, margins), errors)

    def margin(self, alpha: float | None, margins: Sequence[float]) -> float:
        return best_margin(self.weight, self.splits, self.runs, alpha, margins, rule=self.rule)


def needs_margin(layout: Layout, method: Method) -> bool:
    """Whether static scales get headroom by held-out rows.

    For rotated inputs always, since their range is known of the sampled rows alone. Where rows are few also with a
    searched α of "smooth" and "svd", since it goes with the range it was found for, and where the input is cut: each
    piece has seen a part of the values only, so a fresh one is the likelier to lie beyond its range. All others
    keep the plain maximum that their papers define, and "percentile" and (unrotated) "mse" the range they pick.
    """
    if not layout.scheme.static_input or method.ranges == "percentile":
        return False
    if method.rotate:
        return True
    if method.ranges != "amax" or method.optimizer == "awq":
        return False
    return (method.smooths and method.searches and method.optimizer != "balance") or len(layout.columns) > 1


def _fixed_alpha(method: Method) -> float | None:
    """The α of a method that does not search it; None where it does not smooth by α at all."""
    smooths = method.smooths and method.optimizer != "balance"
    return float(method.alpha) if smooths and not isinstance(method.alpha, str) else None


def _total(errors: Sequence[Errors]) -> Errors:
    return {key: sum(entry[key] for entry in errors) for key in errors[0]}


def _rule(method: Method) -> Rule:
    return awq_rule if method.optimizer == "awq" else smoothquant_rule


def _salience(stats: InputStats) -> Tensor:
    assert stats.salience is not None
    return stats.salience


def _everything(stats: InputStats) -> HeldOut:
    """The ranges of all folds in the shape that rules take; no rows."""
    none = stats.positive.new_zeros(0, stats.in_features)
    return HeldOut(stats.positive, stats.negative, none, mean_abs=stats.mean_abs)


def _cut(split: HeldOut, columns: slice) -> HeldOut:
    """A split's columns of one input segment."""
    return replace(
        split,
        positive=split.positive[columns],
        negative=split.negative[columns],
        rows=split.rows[:, columns],
        fit=None if split.fit is None else split.fit[:, columns],
        mean_abs=None if split.mean_abs is None else split.mean_abs[columns],
    )


def layer_signs(layout: Layout, method: Method, device: torch.device) -> Tensor | None:
    """The signs of the layer's rotation, drawn from the method's seed; None without rotation."""
    return random_signs(layout.in_features, method.seed).to(device) if layout.rotate else None


class BlockSimulation:
    """One block (output branch × input segment) of the quantized layer, rounded to nearest; `inputs`: those too."""

    def __init__(
        self, layout: Layout, method: Method, branch: int, index: int, device: torch.device, inputs: bool = True
    ) -> None:
        rows, width = layout.branches[branch], layout.columns[index]
        self.method = method
        self.weight_spec, self.input_spec = layout.weight_spec, layout.scheme.input if inputs else None
        self.dual = layout.dual[index]
        cut = layout.rows if len(layout.branches) == 1 else (rows,)
        self.rows = cut if self.weight_spec.granularity == "tensor" else (1,) * rows
        group = self.weight_spec.group_size
        self.columns = group_pieces((width,), group) if group else (width,)
        group = self.input_spec.group_size if self.input_spec else None
        self.pieces = group_pieces((width,), group) if group else (width,)
        rank = method.rank_of(layout.in_features, layout.out_features)
        share = rank_share(layout, rank) * width / layout.in_features
        self.rank = max(1, round(share)) if method.optimizer == "svd" else 0
        self.transform = Transform()
        if layout.rotate:
            signs = random_signs(layout.in_features, method.seed).to(device)[slices(layout.columns)[index]]
            self.transform = Transform(None, signs, hadamard_blocks(width))

    def __call__(self, weight: Tensor) -> Layer:
        weight = self.transform.weight(weight)
        residual, factors = weight, None
        if self.rank:
            up, down = random_low_rank(weight, self.rank, self.method.seed)
            residual, factors = weight - up @ down, (up, down)
        dtype = self.weight_spec.dtype
        scale = pick_weight_scale(residual, self.method, dtype, self.rows, self.columns)
        rounded = F.fake_quantize(residual, expand_weight_scale(scale, self.rows, self.columns), dtype).T
        importance = weight.square().sum(0) if needs_rows(self.method) else None

        def layer(split: HeldOut) -> Callable[[float], Tensor]:
            rows = self.transform.rows(split.rows)
            ranges = self._ranges(split, importance)
            branch = None if factors is None else (rows @ factors[1].T) @ factors[0].T

            def output(margin: float) -> Tensor:
                out = self._input(rows, ranges, margin) @ rounded
                return out if branch is None else out.add_(branch)

            return output

        return layer

    def _ranges(self, split: HeldOut, importance: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Ranges of a static input; None where there is none."""
        spec = self.input_spec
        if spec is None or spec.dynamic:
            return None
        fit = None
        if needs_rows(self.method):
            assert split.fit is not None
            fit = self.transform.rows(split.fit)
        dual = (self.dual,) * len(self.pieces)
        return pick_input_range(split.positive, split.negative, fit, self.pieces, dual, spec, self.method, importance)

    def _input(self, rows: Tensor, ranges: tuple[Tensor, Tensor] | None, margin: float) -> Tensor:
        if self.input_spec is None:
            return rows
        dual, static = (self.dual,) * len(self.pieces), None
        if ranges is not None:
            static = input_scales(ranges[0] * margin, ranges[1] * margin, dual, self.input_spec)
        return quantize_input(rows, self.pieces, dual, self.input_spec, static)
