"""`auto`: every layer takes the candidate with the least output error on held-out rows, within a budget.

Our reading of "adaptively combines complementary techniques" (arXiv 2507.14811).
"""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from segquant.auto.budget import Candidate, Layer, choose, layer_bytes, layer_operations, limits_of
from segquant.auto.candidates import (
    PLAIN,
    Change,
    branches,
    changed,
    other_precisions,
    other_widths,
    preset,
    ranks_of,
    roundings,
    transforms,
)
from segquant.errors import QuantizationError
from segquant.graph.segments import Segments
from segquant.kernels.reference import REFERENCE
from segquant.method.plan_file import LayerPlan
from segquant.method.spec import Method
from segquant.method.targets import layer_method
from segquant.modules.layers import as_linear, taps_of, window_of
from segquant.numerics.layout import Layout
from segquant.numerics.precisions import precision_name
from segquant.observers.stats import HeldOut, InputStats
from segquant.optimizers.protocol import Fitted
from segquant.optimizers.search import HELD_CALLS, HELD_ROWS
from segquant.solve.lay_out import lay_out_pieces
from segquant.solve.layer import Prepared, correct_bias, solve_layer
from segquant.solve.which_fold import left_alone

log = logging.getLogger(__name__)

GAIN = 4.0
"""Standard errors by which a candidate must beat the preset before its gain counts: Student's t for 7 degrees of
freedom (8 calls held out), 5 % shared among some 20 candidates."""
KEPT = 1
"""Transforms that go from the first round into the second, beside the preset's own."""


def pinned(method: Method, name: str) -> frozenset[str]:
    """Fields that the user's overrides fix for this layer."""
    keys = {key for pattern, values in method.targets.overrides if fnmatch.fnmatchcase(name, pattern) for key in values}
    return frozenset(keys)


def layer_candidates(
    layer: nn.Module,
    base: Method,
    stats: InputStats,
    segments: Segments | None,
    *,
    name: str,
    fixed: frozenset[str] = frozenset(),
) -> Layer:
    """All candidates of a layer with their errors and costs.

    Args:
        stats: of its input, with fold 0's Gram matrix kept apart.
        fixed: fields that stay as they are in `base`.

    Raises:
        QuantizationError: calibration filled one fold only.
    """
    linear = as_linear(layer)
    if window_of(layer) is not None:
        fixed |= {"rotate"}  # see `layer_method`
    judge = Judge(layer, base, stats, segments, name, fixed)
    plain = judge(PLAIN)
    if plain is None:
        raise QuantizationError(f"{name}: its overrides leave nothing to choose; skip it or drop some of them")
    found = judge.rounds({})
    assert base.budget is not None
    if base.budget.average_bits is not None and "precision" not in fixed:
        least = min(found, key=lambda candidate: candidate.error)
        for other in other_precisions(base.scheme, linear.in_features):
            found += judge.rounds({"precision": other})
        for other in other_widths(base.scheme, linear.in_features):
            found += judge.again({"precision": other}, least.change)
    return Layer(name, plain, [plain, *found], linear.weight.numel())


class Judge:
    """Errors and costs of one layer's candidates.

    Args:
        fixed: fields that no candidate changes.
        shares_formats: candidates of all formats share the transforms that the first of them found.
    """

    def __init__(
        self,
        layer: nn.Module,
        base: Method,
        stats: InputStats,
        segments: Segments | None,
        name: str,
        fixed: frozenset[str],
        shares_formats: bool = False,
    ) -> None:
        self.shares_formats = shares_formats
        self.layer, self.linear = layer, as_linear(layer)
        self.base, self.segments, self.name, self.fixed = base, segments, name, fixed
        self.folds = _folds(stats)
        self.fits = [stats.without_fold(split.fold) for split in self.folds]
        weight = self.linear.weight.detach().float()
        self.targets = [nn.functional.linear(split.rows, weight, _bias(self.linear)) for split in self.folds]
        self.fitted: dict[object, Fitted] = {}
        self.found: dict[object, Any] = {}
        self.prepared: dict[int, tuple[object, Prepared]] = {}
        self.solutions: dict[int, tuple[Method, Layout, dict[str, Tensor]]] = {}
        self.judged: dict[frozenset[tuple[str, object]], Candidate | None] = {}
        self.wrong: dict[int, Tensor] = {}

    def rounds(self, scheme: Change) -> list[Candidate]:
        base = changed(self.base, scheme) if scheme else self.base
        shape = self.linear.in_features, self.linear.out_features
        default = {**preset(base, self.segments, *shape), **scheme}
        strong = self(default)
        first = self._all([{**change, **scheme} for change in transforms(base, self.segments)])
        best = sorted(first, key=lambda c: c.error)[:KEPT]
        found = first + self._all(roundings(base, [dict(c.change) for c in best]))
        low_rank = self._all(branches(default, ranks_of(base, *shape)))
        if strong is None:  # a fixed field contradicts it
            return found + low_rank
        # a rank more or less refines the preset: its gain is small, but no accident of many different tries
        other = [self._credited(c, strong) for c in found if c not in (strong, *low_rank)]
        return [strong, *(c for c in low_rank if c is not strong), *other]

    def again(self, scheme: Change, best: Mapping[str, Any]) -> list[Candidate]:
        """Plain rounding, the preset and the base's `best`, at another width: a search of each would take too long."""
        base = changed(self.base, scheme)
        default = preset(base, self.segments, self.linear.in_features, self.linear.out_features)
        return self._all([{**change, **scheme} for change in (PLAIN, default, dict(best))])

    def _credited(self, candidate: Candidate, strong: Candidate) -> Candidate:
        """Drops a gain over the preset below GAIN standard errors, with calls as independent samples."""
        difference = self.wrong[id(strong)] - self.wrong[id(candidate)]
        calls = min(sum(split.calls for split in self.folds), len(difference))
        noise = float(difference.std()) / calls**0.5 if calls > 1 else float("inf")
        if float(difference.mean()) > GAIN * noise:
            return candidate
        return replace(candidate, error=max(candidate.error, strong.error))

    def _all(self, changes: Sequence[Change]) -> list[Candidate]:
        found = (self(change) for change in changes)
        return list({id(candidate): candidate for candidate in found if candidate is not None}.values())

    def __call__(self, change: Change) -> Candidate | None:
        """The candidate; None where a fixed field contradicts it."""
        change = {key: value for key, value in change.items() if key not in self.fixed}
        key = frozenset(change.items())
        if key not in self.judged:
            self.judged[key] = self._judge(change)
        return self.judged[key]

    @torch.no_grad()
    def _judge(self, change: Change) -> Candidate | None:
        try:
            method = left_alone(layer_method(changed(self.base, change), self.layer))
        except ValueError as error:
            log.debug("%s: %s is no candidate: %s", self.name, change, error)
            return None
        rows: list[Tensor] = []
        for index, (split, fit, target) in enumerate(zip(self.folds, self.fits, self.targets, strict=True)):
            layout, tensors = self._solved(method, index)
            if method.bias_correction:
                layout, tensors = correct_bias(self.linear, layout, tensors, fit)
            output = REFERENCE.linear(split.rows, layout, REFERENCE.pack(layout, tensors))
            rows.append((output - target).double().square().sum(1))
        wrong, whole = torch.cat(rows), sum(float(target.double().square().sum()) for target in self.targets)
        bias = tensors["bias"].numel() * tensors["bias"].element_size() if "bias" in tensors else 0
        bits = layout.weight_spec.bits * self.linear.weight.numel()
        relative = (float(wrong.sum()) / whole) ** 0.5 if whole else 0.0 if not wrong.any() else float("inf")
        found = Candidate(change, relative, layer_bytes(layout, bias), layer_operations(layout), bits)
        self.wrong[id(found)] = wrong  # candidates stay in `judged`, so the id is theirs alone
        return found

    def _solved(self, method: Method, index: int) -> tuple[Layout, dict[str, Tensor]]:
        """The layer solved without fold `index`, before bias correction."""
        method = replace(method, bias_correction=False)
        if self.solutions.get(index, (None,))[0] == method:
            return self.solutions[index][1:]
        # candidates that differ in the rank of the low-rank branch or in the calibrator share what the first of them
        # found; those that differ in ranges share the α, but not the headroom of static scales
        alike = (index, self._format(method), method.cuts, method.optimizer.search_key, method.rotation)
        key = (*alike, method.ranges)
        if self.prepared.get(index, (None,))[0] != key:
            self.prepared[index] = (key, {})
        layout, tensors, fitted = solve_layer(
            self.linear, method, self.fits[index], self.segments, name=self.name,
            fitted=self.fitted.get(key), known=self.found.get(alike),
            prepared=self.prepared[index][1], taps=taps_of(self.layer),
        )  # fmt: skip
        self.fitted[key] = fitted
        if fitted.found is not None:
            self.found[alike] = fitted.found
        self.solutions[index] = (method, layout, tensors)
        return layout, tensors

    def _format(self, method: Method) -> object:
        """What of its format a fit depends on."""
        if not self.shares_formats:
            return method.scheme
        layout = lay_out_pieces(self.linear, method, self.segments, self.name, taps_of(self.layer))
        return method.scheme.input, layout.columns, layout.branches  # groups may leave the input uncut


def _bias(linear: nn.Linear) -> Tensor | None:
    return None if linear.bias is None else linear.bias.detach().float()


def _folds(stats: InputStats) -> list[HeldOut]:
    """Folds to judge on: all if the reservoir holds every row, else fold 0."""
    splits = stats.held_out(rows=HELD_ROWS, calls=HELD_CALLS)
    if not splits:
        raise QuantizationError(
            f"{stats.name}: auto judges on rows kept apart, and calibration filled one fold only; give more batches"
        )
    whole = all(len(fold.sample) == fold.rows for fold in stats.folds if fold is not None)
    return splits if whole else splits[:1]


def choose_plan(layers: Sequence[Layer], base: Method) -> list[LayerPlan]:
    assert base.budget is not None
    try:
        chosen = choose(layers, limits_of(base.budget, layers))
    except ValueError as error:
        raise QuantizationError(str(error)) from error
    return [
        LayerPlan(
            layer.name,
            _readable(candidate.change, base),
            round(candidate.error, 6),
            candidate.bytes,
            round(candidate.operations / layer.weights, 4),
            round(layer.plain.error, 6),
            round(layer.gain, 4),
        )
        for layer, candidate in zip(layers, chosen, strict=True)
    ]


def _readable(change: Mapping[str, object], base: Method) -> dict[str, object]:
    own = {"precision": precision_name(base.scheme)}
    return {key: value for key, value in change.items() if value != (own[key] if key in own else base.value(key))}
