from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from segquant import Segments
from segquant.graph.capture.copies import device_of, example_copy, fake_copy, real_copy, tensors_in, unreal, with_values
from segquant_bench.pipelines.errors import one_line

log = logging.getLogger(__name__)

Layer = nn.Linear | nn.Conv2d
LINEAR, CONV = "linear", "conv"
_KINDS: tuple[tuple[type[Layer], str], ...] = ((nn.Linear, LINEAR), (nn.Conv2d, CONV))
_SIDES = ("output", "input", "none")
_VALUES = (DataDependentOutputException, DynamicOutputShapeException)


@dataclass(frozen=True)
class LayerEntry:
    """One linear or convolution.

    Args:
        kind: "linear" or "conv".
        parameters: of weight and bias.
        rows: input rows (output pixels) per call; 0 if never called, None if not counted.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    rows: int | None
    segments: Segments


@dataclass(frozen=True)
class CutKind:
    """All layers cut in one way.

    Args:
        kind: "linear" or "conv".
        side: "output", "input" or "none".
        sizes: of the pieces, in channels.
        bytes: before quantization.
        like: their names, with * for numbers.
    """

    kind: str
    side: str
    sizes: tuple[int, ...]
    layers: int
    parameters: int
    bytes: int
    like: tuple[str, ...]


def layers_of(module: nn.Module) -> dict[str, tuple[Layer, str]]:
    """Linears and convolutions with their kind, by first name."""
    return {
        name: (layer, kind) for name, layer in module.named_modules() for of, kind in _KINDS if isinstance(layer, of)
    }


def parameters_of(module: nn.Module) -> int:
    """Parameters of the module without its children."""
    return sum(parameter.numel() for parameter in module.parameters(recurse=False))


def layer_entries(
    module: nn.Module, segments: Mapping[str, Segments], rows: Mapping[str, int] | None
) -> tuple[LayerEntry, ...]:
    """Every linear and convolution, in the order of `named_modules`."""
    return tuple(
        LayerEntry(
            name,
            kind,
            tuple(layer.weight.shape),
            parameters_of(layer),
            None if rows is None else rows[name],
            segments.get(name, Segments()),
        )
        for name, (layer, kind) in layers_of(module).items()
    )


def like(name: str) -> str:
    """A module's name with * for its numbers."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def alike(names: Iterable[str]) -> tuple[str, ...]:
    """Names with * for numbers in which like names differ: a block's index, not the 2 of ff.net.2."""
    groups: dict[str, list[list[str]]] = {}
    for name in names:
        groups.setdefault(like(name), []).append(name.split("."))
    return tuple(
        ".".join(same[0] if len(set(same)) == 1 else "*" for same in zip(*group, strict=True))
        for group in groups.values()
    )


def cut_kinds(layers: Sequence[LayerEntry], item: int) -> tuple[CutKind, ...]:
    """Layers by cut: linears first; outputs, inputs, uncut; most parameters first.

    A layer cut on both sides is in two groups.

    Args:
        item: bytes of a parameter.
    """
    groups: dict[tuple[str, str, tuple[int, ...]], list[LayerEntry]] = {}
    for layer in layers:
        sides = [("output", layer.segments.output), ("input", layer.segments.input)]
        for side, sizes in [(side, sizes) for side, sizes in sides if sizes] or [("none", ())]:
            groups.setdefault((layer.kind, side, sizes), []).append(layer)
    found = []
    for (kind, side, sizes), members in groups.items():
        parameters = sum(layer.parameters for layer in members)
        names = alike(layer.name for layer in members)
        found.append(CutKind(kind, side, sizes, len(members), parameters, parameters * item, names))
    return tuple(sorted(found, key=lambda each: (each.kind != LINEAR, _SIDES.index(each.side), -each.parameters)))


def count_rows(module: nn.Module, inputs: Mapping[str, Any]) -> dict[str, int] | None:
    """Rows of every layer in one call, by a run of a copy.

    Weights get values only if the forward needs them; None, with a warning, where it reads a missing value.
    """
    device, mode = device_of(module, inputs), FakeTensorMode(allow_non_fake_inputs=True)
    try:
        try:
            return _rows(fake_copy(module, mode, device, values=True), inputs, mode, device)
        except _VALUES:
            if any(unreal(tensor) for tensor in tensors_in(inputs)):
                raise
        return _rows(real_copy(module, device), inputs, mode, device)
    except Exception as error:  # whatever a forward raises that asks tensors for their numbers
        log.warning(
            "operations are not counted: %s does not run on tensors without numbers (%s: %s)",
            type(module).__name__,
            type(error).__name__,
            one_line(error),
        )
        return None


def _rows(module: nn.Module, inputs: Mapping[str, Any], mode: FakeTensorMode, device: torch.device) -> dict[str, int]:
    layers = layers_of(module)
    rows = dict.fromkeys(layers, 0)

    def counting(name: str, axis: int) -> Any:
        def count(_: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            rows[name] += output.numel() // output.shape[axis]

        return count

    for name, (layer, kind) in layers.items():
        layer.register_forward_hook(counting(name, -1 if kind == LINEAR else -3))
    _, given = example_copy((), inputs, with_values(mode, device))
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        module(**given)
    return rows
