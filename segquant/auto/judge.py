"""A layer's candidates judged: solved without some of the rows, with the output error on those."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from segquant.auto.budget import Candidate, layer_bytes, layer_operations
from segquant.auto.candidates import PLAIN, Change, branch, changed, solved, strong, transforms
from segquant.errors import QuantizationError
from segquant.graph.segments import Segments
from segquant.kernels.reference import REFERENCE
from segquant.method.parts import LAYER, METHODS
from segquant.method.spec import Method
from segquant.method.targets import layer_method
from segquant.modules.layers import as_linear, taps_of
from segquant.numerics.layout import Layout
from segquant.observers.stats import HeldOut, InputStats
from segquant.optimizers.protocol import Fitted, Optimizer
from segquant.optimizers.scaling import SmoothQuant
from segquant.optimizers.search import HELD_CALLS, HELD_ROWS, SEARCH, Table, walked
from segquant.optimizers.svdquant import SvdQuant
from segquant.solve.lay_out import lay_out_pieces
from segquant.solve.layer import Prepared, correct_bias, problem_of, solve_layer
from segquant.solve.which_fold import left_alone

log = logging.getLogger(__name__)


class Judge:
    """Errors and costs of one layer's candidates.

    Args:
        fixed: fields that no candidate changes.
        once: judge on the first fold alone, and search α once for it and for the layer itself.
    """

    def __init__(
        self,
        layer: nn.Module,
        base: Method,
        stats: InputStats,
        segments: Segments | None,
        name: str,
        fixed: frozenset[str],
        once: bool = False,
    ) -> None:
        self.layer, self.linear, self.stats = layer, as_linear(layer), stats
        self.base, self.segments, self.name, self.fixed = base, segments, name, fixed
        self.once, self.folds = once, _folds(stats)[: 1 if once else None]
        self.fits = [stats.without_fold(split.fold) for split in self.folds]
        weight = self.linear.weight.detach().float()
        self.targets = [nn.functional.linear(split.rows, weight, _bias(self.linear)) for split in self.folds]
        self.shares = base.budget is not None and base.budget.over == METHODS
        self.fitted: dict[object, Fitted] = {}
        self.found: dict[object, Any] = {}
        self.alphas: dict[object, Table] = {}
        self.prepared: dict[int, tuple[object, Prepared]] = {}
        self.solutions: dict[int, tuple[Method, Layout, dict[str, Tensor]]] = {}
        self.judged: dict[frozenset[tuple[str, object]], Candidate | None] = {}

    def methods(self, *, mixes: bool) -> list[Candidate]:
        """At the base's format: transforms under rounding, then GPTQ under the best of them, with its bias.

        Args:
            mixes: other formats may be taken, whose codes do more with the bytes of a low-rank branch. Else it is one
                more candidate.
        """
        found = self._all([PLAIN, *transforms(self.base, self.segments)])
        if not found:
            return []
        # the best last: what it found serves its bias
        found += self._all([strong(self.base, self.segments), solved(self.base, self._best(found).change)])
        best = self._best(found)
        found += self._all([{**best.change, "bias_correction": True}])
        return _distinct(found if mixes else [*found, *self._branched(best)])

    def _branched(self, best: Candidate) -> list[Candidate]:
        """`best` with a low-rank branch, which takes off as large a share of its error as of that of rounding.

        To refit it under GPTQ would take as long as all else; a budget only asks where bytes do most.
        """
        added = branch(self.base, self.linear.in_features, self.linear.out_features)
        rounded: Change = {**best.change, "calibrator": "amax", "ranges": "amax", "bias_correction": False}
        without, within = self(rounded), self({**rounded, **added, "iterations": 0})
        if without is None or within is None or not without.error:
            return []
        error = best.error * within.error / without.error
        size = best.bytes + within.bytes - without.bytes
        change = {key: value for key, value in {**best.change, **added}.items() if key not in self.fixed}
        return [Candidate(change, error, size, within.operations, within.bits)]

    @staticmethod
    def _best(found: Sequence[Candidate]) -> Candidate:
        return min(found, key=lambda candidate: candidate.error)

    def _all(self, changes: Sequence[Change]) -> list[Candidate]:
        found = (self(change) for change in changes)
        return _distinct([candidate for candidate in found if candidate is not None])

    def __call__(self, change: Change, *, roughly: bool = False) -> Candidate | None:
        """The candidate; None where a fixed field contradicts it.

        Args:
            roughly: by the first fold alone. What is compared must be judged alike.
        """
        change = {key: value for key, value in change.items() if key not in self.fixed}
        roughly = roughly and len(self.folds) > 1  # else both are the same
        key = frozenset({**change, "roughly": roughly}.items())
        if key not in self.judged:
            self.judged[key] = self._judge(change, self.folds[:1] if roughly else self.folds)
        return self.judged[key]

    @torch.no_grad()
    def _judge(self, change: Change, folds: Sequence[HeldOut]) -> Candidate | None:
        try:
            method = self._method(change)
        except ValueError as error:
            log.debug("%s: %s is no candidate: %s", self.name, change, error)
            return None
        wrong, whole = 0.0, 0.0
        for index, (split, fit, target) in enumerate(zip(folds, self.fits, self.targets, strict=False)):
            layout, tensors = self._solved(method, index)
            if method.bias_correction:
                layout, tensors = correct_bias(self.linear, layout, tensors, fit)
            output = REFERENCE.linear(split.rows, layout, REFERENCE.pack(layout, tensors))
            wrong += float((output - target).double().square().sum())
            whole += float(target.double().square().sum())
        bias = tensors["bias"].numel() * tensors["bias"].element_size() if "bias" in tensors else 0
        bits = layout.weight_spec.bits * self.linear.weight.numel()
        relative = (wrong / whole) ** 0.5 if whole else 0.0 if not wrong else float("inf")
        return Candidate(change, relative, layer_bytes(layout, bias), layer_operations(layout), bits)

    def _method(self, change: Change) -> Method:
        """The candidate's method, a search for α replaced by what it finds; ValueError where it makes no sense."""
        method = left_alone(layer_method(changed(self.base, change), self.layer))
        optimizer = method.optimizer
        searches = self.once and change.get("alpha") == SEARCH and isinstance(optimizer, SmoothQuant)
        if not searches or method.cuts.smoothing != LAYER:  # layers that fold share an α, searched for all of them
            return method
        assert isinstance(optimizer, SmoothQuant)
        return replace(method, optimizer=replace(optimizer, alpha=self._alpha(method, optimizer)))

    def _alpha(self, method: Method, optimizer: SmoothQuant) -> Table:
        """Searched once on all statistics, as the layer itself would; for a low-rank branch as without it.

        One number of twelve for a segment that has seen the rows which judge it: all candidates that it is compared
        with have.
        """
        key = (self._format(method), method.cuts, method.rotation, _search_of(optimizer))
        if key not in self.alphas:
            layout = lay_out_pieces(self.linear, method, self.segments, self.name, taps_of(self.layer))
            problem = problem_of(self.linear.weight.detach().float(), layout, self.stats, method, self.name)
            self.alphas[key] = walked(problem, _without_branch(optimizer).scaling(problem))
        return self.alphas[key]

    def told(self, candidate: Candidate) -> Candidate:
        """The candidate with the α that were found, so that whoever solves it need not search again.

        But for another format, whose α is another, and for dynamic inputs beside a low-rank branch: what is best beside
        it is worth 2 % of the model's error there, and searched on few rows.
        """
        change = candidate.change
        branched = change.get("optimizer") == SvdQuant.name and not self.base.scheme.static_input
        if branched or "precision" in change or not self.once or change.get("alpha") != SEARCH:
            return candidate
        alpha = getattr(self._method(dict(change)).optimizer, "alpha", SEARCH)
        if isinstance(alpha, str):
            return candidate
        return replace(candidate, change={**change, "alpha": [list(row) for row in alpha]})  # as in JSON

    def _solved(self, method: Method, index: int) -> tuple[Layout, dict[str, Tensor]]:
        """The layer solved without fold `index`, before bias correction."""
        method = replace(method, bias_correction=False)
        if self.solutions.get(index, (None,))[0] == method:
            return self.solutions[index][1:]
        # candidates that differ in the calibrator share what the first of them found; those that differ in ranges or by
        # a low-rank branch share the α, but not the headroom of static scales
        cut = (index, self._format(method), method.cuts, method.rotation)
        known = isinstance(getattr(method.optimizer, "alpha", SEARCH), tuple)  # then a branch fits as its twin without
        key = (*cut, _search_of(method.optimizer) if known else method.optimizer.search_key, method.ranges)
        alike = (*(cut[1:] if self.shares else cut), _search_of(method.optimizer))
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

    def bytes_of(self, change: Change) -> int:
        """Bytes of codes and scales at the candidate's format, before anything is solved; only differences say much."""
        method = self._method({key: value for key, value in change.items() if key not in self.fixed})
        return layer_bytes(lay_out_pieces(self.linear, method, self.segments, self.name, taps_of(self.layer)), 0)

    def _format(self, method: Method) -> object:
        """What of its format a fit depends on: the first that is judged finds it for all widths and groups."""
        layout = lay_out_pieces(self.linear, method, self.segments, self.name, taps_of(self.layer))
        return method.scheme.input, layout.columns, layout.branches  # groups may leave the input uncut


def _search_of(optimizer: Optimizer) -> Any:
    """What its α depend on; those of smoothing serve a low-rank branch beside it."""
    return (_without_branch(optimizer) if isinstance(optimizer, SmoothQuant) else optimizer).search_key


def _without_branch(optimizer: SmoothQuant) -> SmoothQuant:
    if type(optimizer) is not SvdQuant:
        return optimizer
    return SmoothQuant(**{field.name: getattr(optimizer, field.name) for field in fields(SmoothQuant)})


def _distinct(found: Sequence[Candidate]) -> list[Candidate]:
    return list({id(candidate): candidate for candidate in found}.values())


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
