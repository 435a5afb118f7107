"""What a method makes of a plan: bytes and operations at each precision, and which inputs get a scale per sign."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from pipelines.plan_counts import CutKind, LayerEntry, alike, count_rows, cut_kinds, layer_entries, layers_of, like
from pipelines.plan_counts import parameters_of as parameters
from pipelines.plan_source import Source
from segquant import Method, QuantizationError, Segments, find_segments, presets
from segquant.budget import layer_bytes, layer_operations
from segquant.convolution import as_linear, window_of
from segquant.scope import control_cuts, layer_methods
from segquant.solve import plan_layout

LOW_RANK_ITEM = 2
"""Bytes of a value of the low-rank branch, which stays at 16 bits."""


@dataclass(frozen=True)
class DualKind:
    """Layers of like names whose input gets a scale per sign.

    Args:
        activation: what they are fed by.
        like: their name, with * for numbers.
        layers: how many.
        operations: multiply-accumulates added per call of the model; None if rows could not be counted.
        share: the same over those of all layers.
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
        precision: a name of PRECISIONS.
        refused: why the quantizer has no plan at this precision; the rest is empty then. None if it has one.
        plain: bytes of the whole module with its layers rounded to nearest.
        bytes: the same with the quantizer's cuts, scales, and low-rank branches at their largest.
        dual: layers that get a scale per sign.
        dual_operations: multiply-accumulates added for them, over those of the module; None if not counted.
        added_operations: all that are added, for low-rank branches and rotations too, likewise.
        left: layers that this precision cannot take, with the reason; they are counted in floating point.
    """

    precision: str
    refused: str | None = None
    plain: int | None = None
    bytes: int | None = None
    dual: int = 0
    dual_operations: float | None = None
    added_operations: float | None = None
    left: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ComponentPlan:
    """The plan of one module; parameters and bytes (buffers too) are those of the whole of it, before quantization.

    `operations` are multiply-accumulates of linears and convolutions in one call with the example arguments, None if
    not counted.
    """

    component: str
    origin: str
    class_name: str
    dtype: str
    parameters: int
    bytes: int
    operations: int | None
    layers: tuple[LayerEntry, ...]
    kinds: tuple[CutKind, ...]
    dual: tuple[DualKind, ...]
    estimates: tuple[Estimate, ...]


@dataclass(frozen=True)
class LayerCost:
    """One layer under a method: bytes, bytes when rounded to nearest, operations per row, those of DualScale."""

    bytes: int
    plain: int
    operations: float
    dual: int


def component_plan(source: Source, methods: Mapping[str, Method | str], dtype: str) -> ComponentPlan:
    """Read the graph of one module and count.

    Args:
        source: see `pipelines.plan_source`.
        methods: the quantizer at each precision, or why it refuses it.
        dtype: of the unquantized module, for bytes.

    Raises:
        QuantizationError: the graph cannot be read.
    """
    item = getattr(torch, dtype).itemsize
    segments = find_segments(source.module, kwargs=source.inputs)
    rows = count_rows(source.module, source.inputs)
    entries = layer_entries(source.module, segments, rows)
    total = sum(parameter.numel() for parameter in source.module.parameters())
    layers = {name: layer for name, (layer, _) in layers_of(source.module).items()}
    stored = total * item + sum(_buffer_bytes(buffer, item) for buffer in source.module.buffers())
    counted = _Counted(layers, segments, rows, stored, item)
    signed = [pair for pair in methods.items() if isinstance(pair[1], Method) and _keeps_signs(pair[1])]
    return ComponentPlan(
        component=source.component,
        origin=source.origin,
        class_name=type(source.module).__name__,
        dtype=dtype,
        parameters=total,
        bytes=stored,
        operations=None if rows is None else counted.operations,
        layers=entries,
        kinds=cut_kinds(entries, item),
        dual=counted.dual_kinds(*signed[0]) if signed else (),
        estimates=tuple(counted.estimate(name, method) for name, method in methods.items()),
    )


def _buffer_bytes(buffer: torch.Tensor, item: int) -> int:
    return buffer.numel() * (item if buffer.is_floating_point() else buffer.element_size())


def _keeps_signs(method: Method) -> bool:
    return method.dualscale and method.scheme.input is not None and not method.rotate


def layer_cost(
    layer: nn.Module, method: Method, plain: Method, segments: Segments | None, name: str, item: int
) -> LayerCost:
    """What one linear or ungrouped convolution costs under `method` and under `plain` rounding.

    A low-rank branch counts with the rank that the method allows: where output segments share it, data decides how
    much of it each gets, and the whole is never larger.

    Args:
        item: bytes of a bias value.

    Raises:
        QuantizationError: the precision does not fit the layer.
    """
    linear, window = as_linear(layer), window_of(layer)
    taps = window.taps if window else 1
    layout = plan_layout(linear, method, segments, name, taps)
    simple = plan_layout(linear, plain, None, name, taps)
    bias = 0 if linear.bias is None else linear.bias.numel() * item
    rank = method.rank_of(linear.in_features, linear.out_features) if method.optimizer == "svd" else 0
    branch = rank * (linear.in_features + linear.out_features)
    signed = sum(size for size, dual in zip(layout.columns, layout.dual, strict=True) if dual)
    return LayerCost(
        bytes=layer_bytes(layout, bias) + branch * LOW_RANK_ITEM,
        plain=layer_bytes(simple, bias),
        operations=layer_operations(layout) + branch,
        dual=signed * linear.out_features,
    )


@dataclass(frozen=True)
class _Counted:
    """The layers of a module and what is needed to count: rows None where they are not known, bytes of the whole."""

    layers: Mapping[str, nn.Module]
    segments: Mapping[str, Segments]
    rows: Mapping[str, int] | None
    bytes: int
    item: int

    @property
    def operations(self) -> int:
        return sum(self._rows(name) * layer.weight.numel() for name, layer in self.layers.items())

    def _rows(self, name: str) -> int:
        return 0 if self.rows is None else self.rows[name]

    def _over_all(self, operations: float) -> float | None:
        return None if self.rows is None else operations / self.operations

    def _costs(self, precision: str, method: Method) -> tuple[dict[str, LayerCost], dict[str, str]]:
        """Costs by layer, and the layers that stay as they are with the reason; convolutions only if meant."""
        meant = {
            name: layer for name, layer in self.layers.items() if method.convolutions or isinstance(layer, nn.Linear)
        }
        methods = layer_methods({name: layer for name, layer in meant.items() if _groups(layer) == 1}, method)
        cuts, plain = control_cuts(self.segments, methods), presets.rtn(precision)
        found, left = {}, {}
        for name, layer in meant.items():
            if name not in methods:
                left[name] = "left out by the quantizer" if _groups(layer) == 1 else "a grouped convolution"
                continue
            try:
                found[name] = layer_cost(layer, methods[name], plain, cuts.get(name), name, self.item)
            except QuantizationError as error:
                left[name] = str(error)
        return found, left

    def estimate(self, precision: str, method: Method | str) -> Estimate:
        """Bytes and operations of the whole module at one precision."""
        if isinstance(method, str):
            return Estimate(precision, refused=method)
        costs, left = self._costs(precision, method)
        kept = self.bytes - sum(parameters(self.layers[name]) for name in costs) * self.item
        dual = sum(self._rows(name) * cost.dual for name, cost in costs.items())
        added = sum(
            self._rows(name) * (cost.operations - self.layers[name].weight.numel()) for name, cost in costs.items()
        )
        return Estimate(
            precision,
            plain=kept + sum(cost.plain for cost in costs.values()),
            bytes=kept + sum(cost.bytes for cost in costs.values()),
            dual=sum(cost.dual > 0 for cost in costs.values()),
            dual_operations=self._over_all(dual),
            added_operations=self._over_all(added),
            left=left,
        )

    def dual_kinds(self, precision: str, method: Method) -> tuple[DualKind, ...]:
        """Layers that get a scale per sign under `method`, by activation and like names, the dearest first."""
        groups: dict[tuple[str, str], dict[str, int]] = {}
        for name, cost in self._costs(precision, method)[0].items():
            if cost.dual:
                key = (_activation(self.segments[name]), like(name))
                groups.setdefault(key, {})[name] = self._rows(name) * cost.dual
        found = [
            DualKind(activation, alike(extra)[0], len(extra), sum(extra.values()), self._over_all(sum(extra.values())))
            for (activation, _), extra in groups.items()
        ]
        if self.rows is None:
            return tuple(replace(each, operations=None) for each in found)
        return tuple(sorted(found, key=lambda each: -each.operations))


def _groups(layer: nn.Module) -> int:
    return getattr(layer, "groups", 1)


def _activation(segments: Segments) -> str:
    names = [segments.activation, *(segments.input_activations or ())]
    return ", ".join(dict.fromkeys(name for name in names if name))
