"""Solve layers in turn, or several at a time with the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from segquant.errors import QuantizationError
from segquant.graph.segments import Segments
from segquant.keep import Keeper
from segquant.layers.kept import keep_layer, kept_layer
from segquant.layers.layer import QuantLayer
from segquant.layers.linear import QuantLinear
from segquant.method.spec import Method
from segquant.observers.stats import InputStats
from segquant.solve.folding import LayerFold


def solve_in_turn(
    layers: dict[str, nn.Module],
    methods: Mapping[str, Method],
    stats: dict[str, InputStats],
    segments: Mapping[str, Segments],
    workers: int = 1,
    folds: Mapping[str, LayerFold] | None = None,
    keep: Keeper | None = None,
) -> Iterator[tuple[nn.Module, QuantLayer]]:
    """Every float layer with its quantized one, in order; uses up `layers` and `stats` to free them.

    Args:
        workers: threads, each solving a layer.
        folds: of layers that folding changes.
        keep: has layers that were solved before, and takes those that are.

    Raises:
        QuantizationError: as `QuantLinear.from_float`; layers not yet begun are left alone.
    """
    if workers < 1:
        raise QuantizationError(f"workers={workers}; give the number of layers to solve at once, at least 1")

    def solve(name: str) -> tuple[nn.Module, QuantLayer]:
        layer, found = layers.pop(name), stats.pop(name, None)
        module = None if keep is None else kept_layer(keep, name, layer)
        if module is None:
            with torch.no_grad():  # gradient mode does not cross threads
                module = QuantLinear.from_float(
                    layer, methods[name], found, segments.get(name), name=name, fold=(folds or {}).get(name)
                )
            if keep is not None:
                keep_layer(keep, name, module)
        module.train(layer.training)
        return layer, module

    yield from _mapped(solve, list(layers), workers)


def _mapped(
    solve: Callable[[str], tuple[nn.Module, QuantLayer]], names: list[str], workers: int
) -> Iterator[tuple[nn.Module, QuantLayer]]:
    if workers == 1:
        for name in names:
            yield solve(name)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="segquant") as pool:
        waiting = [pool.submit(solve, name) for name in names]
        try:
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()
