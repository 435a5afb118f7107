"""quantize_: plan, observe once, solve layer by layer, swap."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from segquant.auto.budget import Layer
from segquant.auto.judge import choose_plan, layer_candidates, pinned
from segquant.auto.sensitivity import output_gains
from segquant.errors import QuantizationError
from segquant.graph.find import find_segments
from segquant.graph.segments import Segments
from segquant.layers.parallel import solve_in_turn
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
from segquant.modules.calls import Progress
from segquant.modules.layers import as_linear, taps_of
from segquant.modules.memory import gram_limit
from segquant.modules.swap import swap_
from segquant.observers.observe import Observed, observe_in_groups
from segquant.observers.stats import InputStats
from segquant.reconstruct.blocks import reconstruct_
from segquant.reconstruct.calls import require_repeatable
from segquant.solve.lay_out import lay_out_layer

log = logging.getLogger(__name__)

SENSITIVITY_BATCHES = 2
"""Calibration batches on which `auto` weighs layers against each other; every layer costs a forward pass of each."""
RECORD = "segquant_record"
"""Attribute of a quantized model: {"method": Method.to_dict(), "segments": {layer: …}} as they were used."""


def quantize_(
    model: nn.Module,
    method: Method,
    batches: Iterable[Any],
    segments: Mapping[str, Segments] | None = None,
    *,
    stats: Mapping[str, InputStats] | None = None,
    progress: Progress | None = None,
    memory_limit: int | None = None,
    streaming: bool = False,
    workers: int = 1,
) -> nn.Module:
    """Replace the model's linears and (ungrouped) 2-D convolutions by quantized ones, in place; deterministic.

    Nothing is replaced before everything is solved, unless `streaming`. A layer shared under several names becomes
    one QuantLinear under all of them. None of `memory_limit`, `streaming` and `workers` changes the result.

    Args:
        model: float model.
        method: what to do; see `presets`.
        batches: arguments of the model's forward, as `observe` takes them; read only as far as the method needs it
            (one batch for the segments, all for statistics), and once unless Gram matrices exceed `memory_limit`.
        segments: from `find_segments`, found on the first batch if None and the method wants them.
        stats: from an earlier `observe` of the same model; then `batches` serves the segments alone (and `auto`, which
            sends a few of them through the model to weigh its layers).
        progress: called with (stage, done, total) after every batch and layer.
        memory_limit: bytes for Gram matrices; the data is read once per group of layers that fits. Half of the free
            memory if None.
        streaming: put every layer in place as soon as it is solved, so that float layers are freed on the way (in
            the last group, since the float model must be whole for the others; not with calibrator "adaround"). An
            error then leaves a model that is partly quantized.
        workers: layers solved at once, in threads.

    Returns:
        the same model, with `segquant_record`: {"method", "segments", "passes": readings of all the data}.

    Raises:
        QuantizationError: naming the layer, and what to do.
    """
    refuse_unmatched(model, method)
    layers = targets(model, method)
    if method.scheme.weight is None and not layers:
        return model
    refuse_altered(layers)
    if any(entry.calibrator == "adaround" for entry in layer_methods(layers, method).values()):
        require_repeatable(batches)
    again = batches
    methods, graph, batches = _plan(model, method, layers, batches, segments)
    segments = control_cuts(graph, methods)
    for name, layer in layers.items():  # before any data is read
        lay_out_layer(as_linear(layer), methods[name], segments.get(name), name, taps_of(layer))
    if any(entry.budget is not None for entry in methods.values()):
        planned, plan, stats, passes = _choose(model, method, batches, segments, stats, memory_limit, progress)
        quantize_(
            model, planned, batches, graph, stats=stats, progress=progress, memory_limit=memory_limit,
            streaming=streaming, workers=workers,
        )  # fmt: skip
        record = getattr(model, RECORD)
        record["passes"] += passes
        record["plan"] = [dataclasses.asdict(entry) for entry in plan]
        return model
    learnt = {id(layers[name]) for name, entry in methods.items() if entry.calibrator == "adaround"}
    solved = _Solved(model, method, methods, segments, streaming and not learnt, workers, progress)
    for group in _observed(model, methods, batches, stats, method.seed, memory_limit, progress):
        solved.add(layers, group)
    if learnt:  # which needs the float model whole
        reconstruct_(
            model, solved.modules, again, method.reconstruction, learn=learnt, seed=method.seed, progress=progress
        )
    swap_(model, solved.modules)
    cuts = {name: dataclasses.asdict(segments[name]) for name in solved.names if name in segments}
    setattr(model, RECORD, {"method": method.to_dict(), "segments": cuts, "passes": group.passes + bool(learnt)})
    return model


class _Solved:
    """Quantized layers by the id of the float one, put in place at once if `streaming`; and the names of all."""

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        methods: Mapping[str, Method],
        segments: Mapping[str, Segments],
        streaming: bool,
        workers: int,
        progress: Progress | None,
    ) -> None:
        self.model, self.method, self.methods, self.segments = model, method, methods, segments
        self.streaming, self.workers, self.progress = streaming, workers, progress
        self.modules: dict[int, nn.Module] = {}
        self.names: list[str] = []

    def add(self, layers: dict[str, nn.Module], group: Observed) -> None:
        """Solve those of `layers` whose statistics the group has (in the last group: all), and take them out of it."""
        named = {name: layers.pop(name) for name in list(layers) if name in group.stats or group.last}
        if any(entry.needs_data for entry in self.methods.values()):
            named = _called(named, group.stats, self.method)
        done, whole = len(self.names), len(self.names) + len(named) + len(layers)
        self.names += named
        solving = solve_in_turn(named, self.methods, group.stats, self.segments, self.workers)
        for count, (old, new) in enumerate(solving, start=done + 1):
            self.modules[id(old)] = new
            if self.streaming and group.last:
                swap_(self.model, self.modules)
                self.modules.clear()
            if self.progress is not None:
                self.progress("quantize", count, whole)


def _plan(
    model: nn.Module,
    method: Method,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Any],
    segments: Mapping[str, Segments] | None,
) -> tuple[dict[str, Method], dict[str, Segments], Iterable[Any]]:
    """Every layer's method, the graph's cuts where they are wanted, and the batches, whole again."""
    refuse_nothing(model, layers, method)
    methods = layer_methods(layers, method)
    if segments is None and any(entry.seglinear or entry.dualscale for entry in methods.values()):
        segments, batches = _segments(model, batches)
    return methods, dict(segments or {}), batches


def _choose(
    model: nn.Module,
    method: Method,
    batches: Iterable[Any],
    segments: Mapping[str, Segments],
    stats: Mapping[str, InputStats] | None,
    memory_limit: int | None,
    progress: Progress | None,
) -> tuple[Method, list[LayerPlan], Mapping[str, InputStats] | None, int]:
    """`auto`: the method that carries out its plan, the plan, the statistics if one reading gave them all, and the
    number of readings.
    """
    layers = targets(model, method)
    methods = layer_methods(layers, method)
    head, batches = _head(batches, SENSITIVITY_BATCHES)
    found: list[Layer] = []
    kept: Mapping[str, InputStats] | None = None
    for group in _observed(model, methods, batches, stats, method.seed, memory_limit, progress):
        named = {name: layer for name, layer in layers.items() if name in group.stats}
        if group.last:
            named |= {name: layer for name, layer in layers.items() if name not in {entry.name for entry in found}}
        for name, layer in _called(named, group.stats, method).items():
            judged = layer_candidates(
                layer, methods[name], group.stats[name], segments.get(name), name=name, fixed=pinned(method, name)
            )
            found.append(judged)
            if progress is not None:
                progress("choose", len(found), len(layers))
        kept = group.stats if group.last and group.passes <= 1 else None
    if head:
        gains = output_gains(model, head, {layer.name: layers[layer.name] for layer in found}, progress=progress)
        found = [dataclasses.replace(layer, gain=gains[layer.name]) for layer in found]
    else:
        log.warning("no batches beside the statistics: errors of all layers count the same")
    plan = choose_plan(found, method)
    return plan_method(method, plan, method.name), plan, kept, group.passes


def _observed(
    model: nn.Module,
    methods: Mapping[str, Method],
    batches: Iterable[Any],
    stats: Mapping[str, InputStats] | None,
    seed: int,
    memory_limit: int | None,
    progress: Progress | None,
) -> Iterator[Observed]:
    """Statistics that the methods need, in groups of layers; one group without any if they need none."""
    if stats is not None or not any(entry.needs_data for entry in methods.values()):
        yield Observed(dict(stats or {}), 0, True)
        return
    device = next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))
    yield from observe_in_groups(
        model,
        batches,
        gram=[name for name, entry in methods.items() if entry.needs_gram],
        split_gram=any(entry.budget is not None for entry in methods.values()),
        salience=any(entry.needs_salience for entry in methods.values()),
        seed=seed,
        only=methods,
        progress=progress,
        memory_limit=gram_limit(device) if memory_limit is None else memory_limit,
    )


def _segments(model: nn.Module, batches: Iterable[Any]) -> tuple[dict[str, Segments], Iterable[Any]]:
    """Segments from the first batch, and all batches again."""
    first, batches = _head(batches, 1)
    if not first:
        raise QuantizationError("there are no calibration batches; give at least one, or segments")
    return find_segments(model, *_arguments(first[0])), batches


def _head(batches: Iterable[Any], count: int) -> tuple[list[Any], Iterable[Any]]:
    """The first batches, and all of them again."""
    iterator = iter(batches)
    first = list(itertools.islice(iterator, count))
    return first, itertools.chain(first, iterator) if iterator is batches else batches


def _called(layers: dict[str, nn.Module], stats: Mapping[str, InputStats], method: Method) -> dict[str, nn.Module]:
    uncalled = [name for name in layers if name not in stats or stats[name].rows == 0]
    if uncalled and method.on_uncalled == "error":
        more = f" and {len(uncalled) - 3} more" if len(uncalled) > 3 else ""
        raise QuantizationError(
            f"calibration never called {', '.join(uncalled[:3])}{more}; leave them out with `skip`, "
            "or set on_uncalled='skip'"
        )
    if uncalled:
        log.warning("left in floating point, since calibration never called them: %s", ", ".join(uncalled))
    return {name: layer for name, layer in layers.items() if name not in uncalled}


def _arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any] | None]:
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return ((batch,) if isinstance(batch, Tensor) else tuple(batch)), None
