from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import nn

from segquant import Method, QuantizationError, Segments
from segquant.graph.find import read_graph, segments_of
from segquant.graph.find_producers import find_producers
from segquant.graph.producers import Producer
from segquant_bench.pipelines.plan.costs import Costs, costs_of, stored_bytes
from segquant_bench.pipelines.plan.counts import (
    CutKind,
    Layer,
    LayerEntry,
    alike,
    count_rows,
    cut_kinds,
    layer_entries,
    layers_of,
    like,
)
from segquant_bench.pipelines.plan.source import Source


@dataclass(frozen=True)
class DualKind:
    """Layers of like names whose input gets a scale per sign.

    Args:
        activation: that feeds them.
        like: their name, with * for numbers.
        operations: multiply-accumulates added per call; None if not counted.
        share: of those of all layers.
    """

    activation: str
    like: str
    layers: int
    operations: int | None
    share: float | None


@dataclass(frozen=True)
class Estimate:
    """One precision.

    Args:
        refused: why there is no plan, or None; the rest is empty then.
        plain: bytes with layers rounded to nearest.
        bytes: with cuts, scales, and low-rank branches at their largest.
        dual: layers with a scale per sign.
        dual_operations: share of multiply-accumulates added for them; None if not counted.
        added_operations: the same with low-rank branches and rotations.
        left: unquantized layers, with the reason.
        unfit: those of `left` that must be skipped at this precision.
        folded: layers whose smoothing goes into what comes before them; None if the quantizer does not ask for that.
    """

    precision: str
    refused: str | None = None
    plain: int | None = None
    bytes: int | None = None
    dual: int = 0
    dual_operations: float | None = None
    added_operations: float | None = None
    left: Mapping[str, str] = field(default_factory=dict)
    unfit: tuple[str, ...] = ()
    folded: int | None = None


@dataclass(frozen=True)
class ComponentPlan:
    """The plan of one module; its parameters and bytes are before quantization.

    `operations` are multiply-accumulates of linears and convolutions per call; None if not counted. `tied` parameters
    are counted again in later layers.
    """

    component: str
    origin: str
    class_name: str
    dtype: str
    parameters: int
    bytes: int
    tied: int
    inputs: Mapping[str, tuple[int, ...]]
    operations: int | None
    layers: tuple[LayerEntry, ...]
    kinds: tuple[CutKind, ...]
    dual: tuple[DualKind, ...]
    estimates: tuple[Estimate, ...]


def component_plan(source: Source, methods: Mapping[str, Method | str], dtype: str) -> ComponentPlan:
    """Read the graph of one module and count.

    Args:
        methods: at each precision, or why refused.

    Raises:
        QuantizationError: no graph, or no precision left.
    """
    item, module = getattr(torch, dtype).itemsize, source.module
    captured = read_graph(module, kwargs=source.inputs)
    segments = segments_of(captured)
    rows = count_rows(module, source.inputs)
    entries = layer_entries(module, segments, rows)
    layers = {name: layer for name, (layer, _) in layers_of(module).items()}
    folding = any(not isinstance(method, str) and method.cuts.smoothing != "layer" for method in methods.values())
    producers = find_producers(captured) if folding else ()
    counted = _Counted(module, layers, segments, rows, item, methods, producers)
    estimates = tuple(map(counted.estimate, methods))
    if all(estimate.refused for estimate in estimates):
        raise QuantizationError(estimates[0].refused)
    return ComponentPlan(
        component=source.component,
        origin=source.origin,
        class_name=type(module).__name__,
        dtype=dtype,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        bytes=stored_bytes(module, item),
        tied=_tied(entries, layers),
        inputs=shapes_in(source.inputs),
        operations=counted.operations or None,
        layers=entries,
        kinds=cut_kinds(entries, item),
        dual=counted.dual_kinds(),
        estimates=estimates,
    )


def _tied(entries: tuple[LayerEntry, ...], layers: Mapping[str, nn.Module]) -> int:
    own = {id(each): each.numel() for layer in layers.values() for each in layer.parameters(recurse=False)}
    return sum(entry.parameters for entry in entries) - sum(own.values())


def shapes_in(value: object, name: str = "") -> dict[str, tuple[int, ...]]:
    """Shapes of tensors, by dotted name."""
    if isinstance(value, torch.Tensor):
        return {name: tuple(value.shape)}
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        return {}
    found: dict[str, tuple[int, ...]] = {}
    for key, item in value.items():
        found |= shapes_in(item, f"{name}.{key}" if name else str(key))
    return found


@dataclass(frozen=True)
class _Counted:
    module: nn.Module
    layers: Mapping[str, Layer]
    segments: Mapping[str, Segments]
    rows: Mapping[str, int] | None
    item: int
    methods: Mapping[str, Method | str]
    producers: tuple[Producer, ...] = ()

    @property
    def operations(self) -> int:
        return sum(self._rows(name) * layer.weight.numel() for name, layer in self.layers.items())

    def _rows(self, name: str) -> int:
        return 0 if self.rows is None else self.rows[name]

    def _over_all(self, operations: float) -> float | None:
        return operations / self.operations if self.operations else None

    @cached_property
    def costs(self) -> dict[str, Costs | str]:
        return {precision: self._costs(precision, method) for precision, method in self.methods.items()}

    def _costs(self, precision: str, method: Method | str) -> Costs | str:
        if isinstance(method, str):
            return method
        try:
            return costs_of(self.module, self.layers, self.segments, method, precision, self.item, self.producers)
        except QuantizationError as error:
            return str(error)

    def estimate(self, precision: str) -> Estimate:
        costs = self.costs[precision]
        if isinstance(costs, str):
            return Estimate(precision, refused=costs)
        found = costs.found
        kept = stored_bytes(self.module, self.item, without=[self.layers[name] for name in found])
        dual = sum(self._rows(name) * cost.dual for name, cost in found.items())
        added = sum(
            self._rows(name) * (cost.operations - self.layers[name].weight.numel()) for name, cost in found.items()
        )
        return Estimate(
            precision,
            plain=kept + sum(cost.plain for cost in found.values()),
            bytes=kept + sum(cost.bytes for cost in found.values()),
            dual=sum(cost.dual > 0 for cost in found.values()),
            dual_operations=self._over_all(dual),
            added_operations=self._over_all(added),
            left=costs.left,
            unfit=costs.unfit,
            folded=costs.folded,
        )

    def dual_kinds(self) -> tuple[DualKind, ...]:
        """At the first precision with any; most operations first."""
        every = (costs.found for costs in self.costs.values() if not isinstance(costs, str))
        signed = next((found for found in every if any(cost.dual for cost in found.values())), {})
        groups: dict[tuple[str, str], dict[str, int]] = {}
        for name, cost in signed.items():
            if cost.dual:
                key = (_activation(self.segments[name]), like(name))
                groups.setdefault(key, {})[name] = self._rows(name) * cost.dual
        found = [
            DualKind(activation, alike(extra)[0], len(extra), sum(extra.values()), self._over_all(sum(extra.values())))
            for (activation, _), extra in groups.items()
        ]
        if not self.operations:
            return tuple(replace(each, operations=None) for each in found)
        return tuple(sorted(found, key=lambda each: -(each.operations or 0)))


def _activation(segments: Segments) -> str:
    names = [segments.activation, *(segments.input_activations or ())]
    return ", ".join(dict.fromkeys(name for name in names if name))
