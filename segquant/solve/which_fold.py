"""Which layers' smoothing folds into what comes before them; needs no data."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from segquant.graph.producers import Producer
from segquant.graph.segments import Segments
from segquant.method.spec import Method
from segquant.modules.layers import as_linear, taps_of
from segquant.numerics.layout import Layout
from segquant.solve.folding import without_smoothing
from segquant.solve.lay_out import lay_out_layer, lay_out_pieces, one_scale

log = logging.getLogger(__name__)

MOST_READERS = 16
"""Layers that may share a vector: the text that all blocks read has more, whose weights together may fill memory."""


def plan_folds(
    producers: Sequence[Producer],
    methods: Mapping[str, Method],
    layers: Mapping[str, nn.Module],
    segments: Mapping[str, Segments],
) -> list[Producer]:
    """The producers that take a vector in: all that read from them are quantized in one way, and ask for it."""
    found = []
    for producer in producers:
        reason = _why_not(producer, methods, layers, segments)
        if reason:
            log.debug("the input of %s stays as it is: %s", ", ".join(producer.readers), reason)
        else:
            found.append(producer)
    return found


def left_alone(method: Method) -> Method:
    """What becomes of a layer whose smoothing folds nowhere."""
    plain = method.optimizer.without_smoothing() if method.cuts.smoothing == "fold" else None
    return method if plain is None else replace(method, optimizer=plain)


def _why_not(
    producer: Producer,
    methods: Mapping[str, Method],
    layers: Mapping[str, nn.Module],
    segments: Mapping[str, Segments],
) -> str:
    if len(producer.readers) > MOST_READERS:
        return f"{len(producer.readers)} layers share it"
    missing = [name for name in producer.readers if name not in methods]
    if missing:
        return f"{missing[0]} reads it, which is not quantized"
    own = [methods[name] for name in producer.readers]
    if not all(method.folds for method in own):
        return "smoothing='layer', or another way to smooth"
    if len({_alike(method) for method in own}) > 1:
        return "overrides let its layers differ"
    layouts = [layout_of(layers[name], methods[name], segments, name) for name in producer.readers]
    if len({(layout.columns, layout.dual, layout.taps) for layout in layouts}) > 1:
        return "its layers are cut apart"
    return "its pieces are folded into a vector of their own" if one_scale(layouts[0], own[0]) else ""


def layout_of(layer: nn.Module, method: Method, segments: Mapping[str, Segments], name: str) -> Layout:
    """Where the layer is cut, pieces of its input with scales of their own."""
    return lay_out_pieces(as_linear(layer), method, segments.get(name), name, taps_of(layer))


def lay_out_folded(
    layers: Mapping[str, nn.Module],
    methods: Mapping[str, Method],
    segments: Mapping[str, Segments],
    producers: Sequence[Producer],
    name: str,
) -> Layout:
    """A layer as it will be.

    Args:
        producers: those of `plan_folds`.
    """
    reads = any(name in producer.readers for producer in producers)
    method = methods[name] if reads else left_alone(methods[name])
    layout = lay_out_layer(as_linear(layers[name]), method, segments.get(name), name, taps_of(layers[name]))
    rows = [row for producer in producers for row in producer.rows if row.parameter == f"{name}.weight"]
    places = tuple(sorted((row.start, row.stop, 0.0) for row in rows))
    return replace(without_smoothing(layout) if reads else layout, folded_rows=places)


def _alike(method: Method) -> tuple[Any, ...]:
    return method.scheme, method.cuts, method.optimizer, method.rotation, method.ranges
