"""quantize_: plan, observe once, solve layer by layer, swap."""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import logging
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

from torch import Tensor, nn

from segquant.controls import random_cuts, wrong_cuts
from segquant.errors import QuantizationError
from segquant.graph import find_segments
from segquant.layers import QuantLinear
from segquant.observe import InputStats, Progress, linears, observe
from segquant.segments import Segments
from segquant.solve import plan_layout
from segquant.spec import Method

log = logging.getLogger(__name__)

RECORD = "segquant_record"
"""Attribute of a quantized model: {"method": Method.to_dict(), "segments": {layer: …}} as they were used."""


def targets(model: nn.Module, method: Method) -> dict[str, nn.Linear]:
    """The linears that `method` quantizes, by first name: all but those that `skip` or an override leaves out."""
    return {name: module for name, module in linears(model).items() if method.for_layer(name) is not None}


def layer_methods(layers: Iterable[str], method: Method) -> dict[str, Method]:
    """What is done to each layer, overrides applied."""
    found = {name: method.for_layer(name) for name in layers}
    return {name: entry for name, entry in found.items() if entry is not None}


def _unmatched(model: nn.Module, method: Method) -> None:
    """An override that matches no linear is a typing error: the numbers would silently be others."""
    names = list(linears(model))
    for pattern, _ in method.overrides:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise QuantizationError(
                f"override {pattern!r} matches none of the model's {len(names)} linears ({', '.join(names[:3])} …); "
                "correct the glob or leave it out"
            )


def quantize_(
    model: nn.Module,
    method: Method,
    batches: Iterable[Any],
    segments: Mapping[str, Segments] | None = None,
    *,
    stats: Mapping[str, InputStats] | None = None,
    progress: Progress | None = None,
) -> nn.Module:
    """Replace the model's linears by quantized ones, in place; deterministic.

    Nothing is replaced before everything is solved. A linear shared under several names becomes one
    QuantLinear under all of them.

    Args:
        model: float model.
        method: what to do; see `presets`.
        batches: arguments of the model's forward, as `observe` takes them; read at most once, and only as
            far as the method needs it (one batch for the segments, all for statistics).
        segments: from `find_segments`, found on the first batch if None and the method wants them.
        stats: from an earlier `observe` of the same model; then `batches` serves the segments alone.
        progress: called with (stage, done, total) after every batch and layer.

    Returns:
        the same model.

    Raises:
        QuantizationError: naming the layer, and what to do.
    """
    _unmatched(model, method)
    layers = targets(model, method)
    if method.scheme.weight is None and not layers:
        return model
    if not layers:
        raise QuantizationError(
            f"method {method.name!r} finds no linear to quantize; skip={list(method.skip)} leaves "
            f"out all {len(linears(model))} of the model"
        )
    total = len(batches) if isinstance(batches, Sized) else 0
    iterator = iter(batches)
    methods = layer_methods(layers, method)
    if segments is None and any(entry.seglinear or entry.dualscale for entry in methods.values()):
        segments, iterator = _segments(model, iterator)
    segments = control_cuts(segments or {}, methods)
    for name, layer in layers.items():
        plan_layout(layer, methods[name], segments.get(name), name)
    if any(entry.needs_data for entry in methods.values()):
        if stats is None:
            gram = [name for name, entry in methods.items() if entry.needs_gram]
            salience = any(entry.needs_salience for entry in methods.values())
            stats = observe(
                model, iterator, gram=gram, salience=salience, seed=method.seed,
                only=layers, progress=progress, total=total,
            )  # fmt: skip
        layers = _called(layers, stats, method)
    solved = _solve(layers, methods, dict(stats or {}), segments, progress)
    swap_(model, solved)
    cuts = {name: dataclasses.asdict(segments[name]) for name in layers if name in segments}
    setattr(model, RECORD, {"method": method.to_dict(), "segments": cuts})
    return model


def control_cuts(segments: Mapping[str, Segments], methods: Mapping[str, Method]) -> dict[str, Segments]:
    """The graph's cuts, or the controls of Table 6 where the method asks for them."""
    found = dict(segments)
    for name, method in methods.items():
        if name not in found or method.cuts == "graph":
            continue
        specs = (method.scheme.weight, method.scheme.input)
        multiple = math.lcm(*(spec.group_size for spec in specs if spec is not None and spec.group_size))
        if method.cuts == "random":
            found[name] = random_cuts(found[name], zlib.crc32(name.encode()) ^ method.seed, multiple=multiple)
        else:
            found[name] = wrong_cuts(found[name], multiple=multiple)
    return found


def _segments(model: nn.Module, batches: Iterator[Any]) -> tuple[dict[str, Segments], Iterator[Any]]:
    """Segments from the first batch, and all batches again."""
    first = list(itertools.islice(batches, 1))
    if not first:
        raise QuantizationError("there are no calibration batches; give at least one, or segments")
    return find_segments(model, *_arguments(first[0])), itertools.chain(first, batches)


def _called(layers: dict[str, nn.Linear], stats: Mapping[str, InputStats], method: Method) -> dict[str, nn.Linear]:
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


def _solve(
    layers: dict[str, nn.Linear],
    methods: Mapping[str, Method],
    stats: dict[str, InputStats],
    segments: Mapping[str, Segments],
    progress: Progress | None,
) -> dict[int, nn.Module]:
    """Quantized layers by the id of the float ones; `stats` is used up, so that memory is given back early."""
    solved: dict[int, nn.Module] = {}
    for index, (name, layer) in enumerate(layers.items()):
        module = QuantLinear.from_float(layer, methods[name], stats.pop(name, None), segments.get(name), name=name)
        solved[id(layer)] = module.train(layer.training)
        if progress is not None:
            progress("quantize", index + 1, len(layers))
    return solved


def swap_(model: nn.Module, replacements: Mapping[int, nn.Module]) -> None:
    """Replace submodules by identity (id of the old module), wherever they hang, aliases included."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and id(child) in replacements:
                parent._modules[name] = replacements[id(child)]


def _arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any] | None]:
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return ((batch,) if isinstance(batch, Tensor) else tuple(batch)), None
