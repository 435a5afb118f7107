"""quantize_: plan, observe once, solve layer by layer, swap."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from segquant.arguments import GivenMethod, method_of
from segquant.auto.sensitivity import Combine
from segquant.calibrators.protocol import Calibrator
from segquant.checks import checked
from segquant.errors import QuantizationError
from segquant.graph.capture.calls import Capture
from segquant.graph.find import read_graph, segments_of
from segquant.graph.find_producers import find_producers
from segquant.graph.segments import Segments
from segquant.keep import Keeper
from segquant.layers.adapters import refuse_adapters_
from segquant.layers.saving import refuse_save_pretrained_
from segquant.layers.state_dict import tell_weights_
from segquant.method.plan_file import LayerPlan, plan_method
from segquant.method.spec import Method
from segquant.method.targets import (
    control_cuts,
    layer_methods,
    refuse_altered,
    refuse_nothing,
    refuse_unmatched,
    targets,
)
from segquant.modules.calls import Progress, batches_of
from segquant.modules.layers import as_linear, taps_of
from segquant.modules.state import own_state
from segquant.modules.swap import swap_
from segquant.modules.wrappers import unwrapped
from segquant.observers.stats import InputStats
from segquant.quantize.batches import arguments_of, head
from segquant.quantize.choose import choose
from segquant.quantize.folds import Folds
from segquant.quantize.outcome import Outcome
from segquant.quantize.solved import Solved, observed
from segquant.reconstruct.calls import require_repeatable
from segquant.solve.lay_out import lay_out_layer

SOLVED = "solve"
"""The part of a `Keeper` that has the layers."""
_WORDS = {
    "segments": "what find_segments returned",
    "stats": "what observe returned",
    "memory_limit": "a number of bytes",
    "method": "",
    "combine": "segquant.guidance(4.0), or a function of the model's output",
}


@checked(**_WORDS)
def quantize_(
    model: nn.Module,
    method: GivenMethod,
    batches: Iterable[Any],
    segments: Mapping[str, Segments] | None = None,
    *,
    stats: Mapping[str, InputStats] | None = None,
    progress: Progress | None = None,
    memory_limit: int | None = None,
    streaming: bool = False,
    workers: int = 1,
    combine: Combine | None = None,
) -> nn.Module:
    """Replace the model's linears and (ungrouped) 2-D convolutions by quantized ones, in place; deterministic.

    Nothing is replaced before everything is solved, unless `streaming`. A layer shared under several names becomes one
    QuantLinear. `memory_limit`, `streaming` and `workers` do not change the result.

    Args:
        method: see `presets`; also the name of one, or {"name": …, "precision": …, its settings}.
        batches: as for `observe`; read as far as needed, once unless Gram matrices exceed `memory_limit`.
        segments: found on the first batch if None.
        stats: of an earlier `observe`; `batches` then serves only segments and `auto`.
        progress: called with (stage, done, total) after every batch and layer.
        memory_limit: bytes for Gram matrices; half of the free memory if None.
        streaming: replace layers as they are solved (not with "adaround"); an error leaves some replaced.
        workers: layers solved at once, in threads.
        combine: what a sampler makes of the model's output, by which layers count for methods with a budget;
            `segquant.guidance(4.0)` where batches stack rows without and with prompts. None: the output itself.

    Returns:
        the same model; see `quantize_with_outcome_`.

    Raises:
        QuantizationError: naming the layer, and what to do.
    """
    options = _Options(progress, memory_limit, streaming, workers, combine=combine)
    _quantize(model, method_of(method), batches_of(batches), segments, stats, options)
    return model


@checked(**_WORDS)
def quantize_with_outcome_(
    model: nn.Module,
    method: GivenMethod,
    batches: Iterable[Any],
    segments: Mapping[str, Segments] | None = None,
    *,
    stats: Mapping[str, InputStats] | None = None,
    progress: Progress | None = None,
    memory_limit: int | None = None,
    streaming: bool = False,
    workers: int = 1,
    combine: Combine | None = None,
    keep: Keeper | None = None,
) -> Outcome:
    """As `quantize_`; returns what was done to the model.

    Args:
        keep: takes statistics and layers as they are finished; the same call after a kill goes on behind them.
    """
    options = _Options(progress, memory_limit, streaming, workers, keep, combine)
    return _quantize(model, method_of(method), batches_of(batches), segments, stats, options)


@dataclass(frozen=True)
class _Options:
    progress: Progress | None
    memory_limit: int | None
    streaming: bool
    workers: int
    keep: Keeper | None = None
    combine: Combine | None = None

    def part(self, name: str) -> Keeper | None:
        return None if self.keep is None else self.keep.within(name)


@own_state()
def _quantize(
    model: nn.Module,
    method: Method,
    batches: Iterable[Any],
    segments: Mapping[str, Segments] | None,
    stats: Mapping[str, InputStats] | None,
    options: _Options,
) -> Outcome:
    with unwrapped(model) as inner:
        try:
            return _quantize_unwrapped(inner, method, batches, segments, stats, options)
        finally:
            refuse_adapters_(tell_weights_(refuse_save_pretrained_(inner)))


def _quantize_unwrapped(
    model: nn.Module,
    method: Method,
    batches: Iterable[Any],
    segments: Mapping[str, Segments] | None,
    stats: Mapping[str, InputStats] | None,
    options: _Options,
) -> Outcome:
    refuse_unmatched(model, method)
    layers = targets(model, method)
    if method.scheme.weight is None and not layers:
        return Outcome(method)
    refuse_altered(layers)
    refuse_nothing(model, layers, method)
    methods = layer_methods(layers, method)
    _require_repeatable(methods, batches)
    again = batches
    captured: Capture | None = None
    wants_cuts = segments is None and any(entry.cuts.wants_graph for entry in methods.values())
    if wants_cuts or any(map(_may_fold, methods.values())):
        captured, batches = _graph(model, batches)
    graph = segments_of(captured) if wants_cuts and captured is not None else dict(segments or {})
    _lay_out(layers, methods, control_cuts(graph, methods))
    choices: list[LayerPlan] | None = None
    chosen_in = 0
    if any(entry.budget is not None for entry in methods.values()):
        found = choose(
            model, method, layers, batches, control_cuts(graph, methods), stats, options.memory_limit,
            options.progress, options.part("choose"), options.combine,
        )  # fmt: skip
        choices, stats, chosen_in = found.layers, found.stats, found.passes
        method = plan_method(method, choices, method.name)
        layers = targets(model, method)
        methods = layer_methods(layers, method)
        _require_repeatable(methods, again)
        _lay_out(layers, methods, control_cuts(graph, methods))
    cuts = control_cuts(graph, methods)
    producers = find_producers(captured) if captured and any(map(_may_fold, methods.values())) else ()
    folds = Folds(model, methods, layers, producers, cuts)
    outcome = _solve(model, method, methods, layers, batches, again, cuts, stats, folds, options)
    passes = outcome.passes + chosen_in
    return Outcome(method, outcome.segments, passes, None if choices is None else tuple(choices), folds.folded)


def _may_fold(method: Method) -> bool:
    """Whether smoothing may be folded, once `auto` has chosen."""
    return method.folds or (method.budget is not None and method.cuts.smoothing != "layer")


def _require_repeatable(methods: Mapping[str, Method], batches: Iterable[Any]) -> None:
    if any("second_pass" in entry.needs for entry in methods.values()):
        require_repeatable(batches)


def _lay_out(layers: Mapping[str, nn.Module], methods: Mapping[str, Method], segments: Mapping[str, Segments]) -> None:
    """Refuse layers before any data is read."""
    for name, layer in layers.items():
        lay_out_layer(as_linear(layer), methods[name], segments.get(name), name, taps_of(layer))


def _solve(
    model: nn.Module,
    method: Method,
    methods: Mapping[str, Method],
    layers: dict[str, nn.Module],
    batches: Iterable[Any],
    again: Iterable[Any],
    segments: Mapping[str, Segments],
    stats: Mapping[str, InputStats] | None,
    folds: Folds,
    options: _Options,
) -> Outcome:
    learnt: dict[Calibrator, set[int]] = {}
    for name, entry in methods.items():
        if "second_pass" in entry.calibrator.needs:
            learnt.setdefault(entry.calibrator, set()).add(id(layers[name]))
    streaming = options.streaming and not learnt
    keep, passes = options.part(SOLVED), 0
    solved = Solved(model, method, methods, segments, streaming, options.workers, options.progress, folds, keep)
    for group in observed(model, methods, batches, stats, method.seed, options.memory_limit, options.progress, keep):
        solved.add(layers, group)
        passes = group.passes
    for number, (calibrator, keys) in enumerate(learnt.items()):  # needs the float model whole
        given = _keeping(calibrator, options.part(f"refine {number}"))
        calibrator.refine_(
            model, solved.modules, again, learn=frozenset(keys), seed=method.seed, progress=options.progress, **given
        )
    swap_(model, solved.modules)
    folds.apply_(solved.names)
    used = {name: segments[name] for name in solved.names if name in segments}
    return Outcome(method, used, passes + len(learnt))


def _keeping(calibrator: Calibrator, keep: Keeper | None) -> dict[str, Any]:
    """Its pieces, for a calibrator that keeps any; somebody's own may begin again."""
    return {"keep": keep} if "keep" in inspect.signature(calibrator.refine_).parameters else {}


def _graph(model: nn.Module, batches: Iterable[Any]) -> tuple[Capture, Iterable[Any]]:
    first, batches = head(batches, 1)
    if not first:
        raise QuantizationError("there are no calibration batches; give at least one, or segments")
    return read_graph(model, *arguments_of(first[0])), batches
