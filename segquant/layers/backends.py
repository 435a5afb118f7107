"""Which backend runs each quantized layer, and what computes attention between them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from segquant import registry
from segquant.checks import checked, described
from segquant.errors import QuantizationError, nearest
from segquant.kernels.backend import Backend
from segquant.kernels.cpu.attention import TORCHS
from segquant.layers import attention as attentions
from segquant.layers.attention import TORCH, Attention
from segquant.layers.gelu import set_gelu_
from segquant.layers.layer import QuantLayer
from segquant.modules.wrappers import unwrapped

NAMED = 3
"""Layers that a refusal names."""
AUTO = "auto"
ORDER = {"cpu": ("cpu", "reference"), "cuda": ("triton", "cuda", "reference")}
"""What "auto" tries, by kind of device; elsewhere the last."""
LAST = ORDER["cpu"][-1]
WITH_ATTENTION = (AUTO, "cpu")
"""Names of `set_backend_` that take attention as well."""
WITH_GELU = "with the GELU after it"


@dataclass(frozen=True)
class BackendChoice:
    """What runs a layer, and why the backends before it do not; "" where there are none.

    `with_gelu`: it takes GELU of what comes out in the same pass.

    Of attention, `backend` is "attention float", "attention int8" or "attention torch".
    """

    layer: str
    backend: str
    reason: str
    with_gelu: bool = False

    def __str__(self) -> str:
        return "; ".join(each for each in (self.reason, WITH_GELU if self.with_gelu else "") if each)


@dataclass(frozen=True)
class BackendTable:
    """What runs each quantized layer of a model; as a string, a table in which numbered layers share a line."""

    choices: tuple[BackendChoice, ...]

    def __iter__(self) -> Iterator[BackendChoice]:
        return iter(self.choices)

    def __len__(self) -> int:
        return len(self.choices)

    def __str__(self) -> str:
        if not self.choices:
            return "no quantized layer: quantize_ makes them"
        counts: dict[tuple[str, str, str], int] = {}
        for choice in self.choices:
            line = re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "*", choice.layer), choice.backend, str(choice)
            counts[line] = counts.get(line, 0) + 1
        rows = [("layer", "layers", "backend", "reason")]
        rows += [(name, str(count), backend, reason) for (name, backend, reason), count in counts.items()]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ["  ".join([*(cell.ljust(size) for cell, size in zip(row[:3], widths, strict=True)), row[3]])
                 for row in rows]  # fmt: skip
        return "\n".join(line.rstrip() for line in lines)


@checked()
def backends(model: nn.Module) -> dict[str, str]:
    """The backend's name by quantized layer."""
    return {name: layer.backend.name for name, layer in _layers(model).items()}


@checked()
def set_backend_(
    model: nn.Module,
    name: str,
    fallback: str | None = None,
    *,
    strict: bool = False,
    attention: Attention = TORCH,
) -> BackendTable:
    """Choose how the quantized layers run, in place, for a model on its final device.

    Args:
        name: a backend; or "auto": the fastest that can run each layer, "reference" where none can. "auto" prints the
            table.
        fallback: of a named backend, runs layers that it cannot; "auto" has its own.
        strict: raise where "auto" leaves a layer to the reference or attention to torch, where a named backend leaves
            one to its fallback, and where there is no quantized layer.
        attention: with "auto" and "cpu", what computes softmax(q kᵀ) v in diffusers' attention modules: "torch", or the
            CPU's kernel with products of floats ("float"; another rounding) or of 8-bit codes ("int8"). Processors that
            are set afterwards are torch's again.

    Returns:
        What runs each layer and, but for "torch", each attention; and why.

    Raises:
        QuantizationError: an unknown name, layers that none of them can run, `strict`, or an `attention` that no module
            has; nothing is changed then.
    """
    layers = _layers(model)
    if name == AUTO and fallback is not None:
        raise QuantizationError(
            f'"auto" falls back to "{LAST}" by itself, and fallback={fallback!r} is given; leave one of them out'
        )
    if fallback == name:
        raise QuantizationError(f"fallback={fallback!r} is the backend itself; name another, or leave it out")
    found = {layer_name: _first(layer, _order(layer, name, fallback)) for layer_name, layer in layers.items()}
    _order(None, name, fallback)  # an unknown name raises without layers too
    modules = _attentions(model, name, attention)
    reasons = {} if attention == TORCH else {each: attentions.why_not(module) for each, module in modules.items()}
    if strict and not layers and attention == TORCH:
        raise QuantizationError(
            f"{type(model).__name__} has no quantized layer; quantize it, or give the model that is"
        )
    _refuse(name, fallback, strict, found, reasons)
    for layer_name, (backend, _) in found.items():
        assert backend is not None
        layers[layer_name].backend = backend
        layers[layer_name].forget_packed()
        layers[layer_name].pack_early()
    with unwrapped(model) as inner:
        both = set_gelu_(inner)
    choices = [
        BackendChoice(each, layers[each].backend.name, "; ".join(before), id(layers[each]) in both)
        for each, (_, before) in found.items()
    ]
    for module_name, module in modules.items():
        reason = reasons.get(module_name)
        own = attention if reason is None else TORCH
        attentions.set_attention_(module, own)
        if attention != TORCH:
            choices.append(BackendChoice(module_name, f"attention {own}", TORCHS if reason is None else reason))
    table = BackendTable(tuple(choices))
    if name == AUTO:
        print(table)
    return table


def _refuse(
    name: str,
    fallback: str | None,
    strict: bool,
    layers: Mapping[str, tuple[Backend | None, list[str]]],
    reasons: Mapping[str, str | None],
) -> None:
    """Raise for layers that nothing runs, and attentions (by why the kernel does not take them) that must be taken."""
    refused = [
        f"{layer} ({'; '.join(before)})"
        for layer, (backend, before) in layers.items()
        if backend is None or (strict and (backend.name == LAST if name == AUTO else bool(before)))
    ]
    if strict or (name != AUTO and fallback is None):
        refused += [f"the attention of {module} ({reason})" for module, reason in reasons.items() if reason is not None]
    if not refused:
        return
    more = f" and {len(refused) - NAMED} more" if len(refused) > NAMED else ""
    advice = "name another fallback" if fallback else "name a fallback, for example fallback='reference'"
    advised = LAST if name == AUTO else fallback
    advice = f"leave strict out to run them by {advised!r}" if strict and advised else advice
    raise QuantizationError(f"backend {name!r} cannot run {', '.join(refused[:NAMED])}{more}; {advice}")


def _attentions(model: nn.Module, name: str, attention: Attention) -> dict[str, nn.Module]:
    """Modules that compute attention; there are some, if it is not to be torch's."""
    if attention not in attentions.ATTENTIONS:
        raise QuantizationError(
            f"there is no attention {described(attention)}; {nearest(str(attention), attentions.ATTENTIONS)}"
        )
    if attention != TORCH and name not in WITH_ATTENTION:
        raise QuantizationError(
            f"backend {name!r} leaves attention to torch, and attention={attention!r} is asked for; "
            f"{' and '.join(map(repr, WITH_ATTENTION))} take it"
        )
    with unwrapped(model) as inner:
        modules = attentions.attentions(inner)
    if attention != TORCH and not modules:
        raise QuantizationError(
            f"attention={attention!r} is asked for, and {type(model).__name__} has no attention; leave it out"
        )
    return modules


def _order(layer: QuantLayer | None, name: str, fallback: str | None) -> list[Backend]:
    """Backends to try, the first that can runs the layer."""
    if name != AUTO:
        return [registry.find("backend", each)() for each in (name, fallback) if each is not None]
    kind = "" if layer is None else layer.codes.device.type
    known = registry.table("backend")
    return [known[each]() for each in ORDER.get(kind, (LAST,)) if each in known]


def _first(layer: QuantLayer, order: list[Backend]) -> tuple[Backend | None, list[str]]:
    """The first backend that can run the layer, and why those before it cannot."""
    reasons: list[str] = []
    for backend in order:
        reason = _why_not(backend, layer)
        if reason is None:
            return backend, reasons
        reasons.append(reason if len(order) < 3 else f"{backend.name}: {reason}")
    return None, reasons


def _why_not(backend: Backend, layer: QuantLayer) -> str | None:
    window = getattr(layer, "window", None)
    if "window" in inspect.signature(backend.why_not).parameters:
        return backend.why_not(layer.layout, layer.codes.device, window)
    return backend.why_not(layer.layout, layer.codes.device)


def _layers(model: nn.Module) -> dict[str, QuantLayer]:
    with unwrapped(model) as inner:
        return {name: module for name, module in inner.named_modules() if isinstance(module, QuantLayer)}
