"""`auto`: every layer's choice."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from segquant.auto.budget import Layer, compete, limits_of
from segquant.auto.kept import keep_candidates, kept_candidates
from segquant.auto.layers import choose_plan, layer_candidates, pinned, rounded
from segquant.auto.sensitivity import Combine, output_gains
from segquant.graph.segments import Segments
from segquant.keep import Keeper
from segquant.method.parts import FORMATS
from segquant.method.plan_file import LayerPlan
from segquant.method.spec import Method
from segquant.method.targets import layer_methods
from segquant.modules.calls import Progress
from segquant.observers.stats import InputStats
from segquant.quantize.batches import head
from segquant.quantize.solved import called, observed

log = logging.getLogger(__name__)

SENSITIVITY_BATCHES = 2
"""Calibration batches on which `auto` weighs layers against each other; every layer costs a forward pass of each."""


@dataclass(frozen=True)
class Choice:
    """Every layer's plan, and the statistics if one reading sufficed."""

    layers: list[LayerPlan]
    stats: Mapping[str, InputStats] | None
    passes: int


def choose(
    model: nn.Module,
    method: Method,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Any],
    segments: Mapping[str, Segments],
    stats: Mapping[str, InputStats] | None,
    memory_limit: int | None,
    progress: Progress | None,
    keep: Keeper | None = None,
    combine: Combine | None = None,
) -> Choice:
    methods = layer_methods(layers, method)
    first, batches = head(batches, SENSITIVITY_BATCHES)
    found: list[Layer] = []
    rough: dict[str, tuple[nn.Module, float]] = {}  # as many bytes as what is solved, which waits as long
    kept: Mapping[str, InputStats] | None = None
    passes = 0
    for group in observed(model, methods, batches, stats, method.seed, memory_limit, progress, keep):
        named = {name: layer for name, layer in layers.items() if name in group.stats}
        if group.last:
            named |= {name: layer for name, layer in layers.items() if name not in {entry.name for entry in found}}
        for name, layer in called(named, group.stats, method).items():
            judged = kept_candidates(keep, name)
            if judged is None:
                judged = layer_candidates(
                    layer, methods[name], group.stats[name], segments.get(name), name=name, fixed=pinned(method, name)
                )
                keep_candidates(keep, judged)
            found.append(judged)
            if first:
                other = rounded(
                    layer, methods[name], group.stats[name], segments.get(name), name=name, fixed=pinned(method, name)
                )
                rough[name] = (other, judged.plain.error)
            if progress is not None:
                progress("choose", len(found), len(layers))
        kept, passes = group.stats if group.last and group.passes <= 1 else None, group.passes
    if not _weighs(method, found):
        log.info("every layer has its best within the budget: they need not be weighed against each other")
    elif first:
        named = {layer.name: layers[layer.name] for layer in found}
        gains = output_gains(model, first, named, rough, combine=combine, progress=progress, keep=keep)
        found = [dataclasses.replace(layer, gain=gains[layer.name]) for layer in found]
    else:
        log.warning("no batches beside the statistics: errors of all layers count the same")
    return Choice(choose_plan(found, method), kept, passes)


def _weighs(method: Method, layers: Sequence[Layer]) -> bool:
    """Whether how much layers matter to the output changes what `auto` chooses."""
    budget = method.budget
    return budget is None or budget.over == FORMATS or compete(layers, limits_of(budget, layers))
