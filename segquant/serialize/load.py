"""Read a quantized model."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from segquant.checks import checked, described
from segquant.errors import QuantizationError, first_line
from segquant.files import sha256_of
from segquant.layers.adapters import refuse_adapters_, refuse_without
from segquant.layers.attention import TORCH, Attention
from segquant.layers.backends import set_backend_
from segquant.layers.layer import QuantLayer
from segquant.layers.linear import QuantLinear
from segquant.layers.saving import refuse_save_pretrained_
from segquant.layers.state_dict import tell_weights_
from segquant.modules.bounded import bounded_building
from segquant.modules.layers import width_of
from segquant.modules.state import building, own_state
from segquant.modules.swap import swap_
from segquant.modules.window import Window
from segquant.modules.wrappers import unwrapped
from segquant.numerics.layout import Layout
from segquant.serialize.manifest import MANIFEST, WEIGHTS, read_manifest
from segquant.serialize.method_fields import DAMAGE

PACKAGES = ("diffusers", "transformers", "torch.nn")
"""Packages whose classes load_quantized may import by the name found in a manifest."""
TABLES = 1 << 28
"""Numbers in buffers that no file stores (tables of positions)."""


@checked()
@own_state()
def load_quantized(
    directory: str | Path, model: nn.Module | None = None, *, backend: str = "reference", attention: Attention = TORCH
) -> nn.Module:
    """Read a saved model, in eval mode; its outputs are bit for bit those of the saved one.

    Args:
        model: float model of the same architecture, maybe compiled, filled in place on its device (the CPU if on
            meta). If None, built on the CPU from the recorded class and config (diffusers).
        backend: see `set_backend_`.
        attention: likewise; files do not hold it.

    Raises:
        QuantizationError: a file is missing, truncated, of another schema, or does not fit; a transform is not
            registered; the backend cannot run a layer.
    """
    folder = Path(directory)
    manifest = read_manifest(folder)
    tensors = _read_tensors(folder, manifest)
    if model is None:
        return _fill(_build(manifest, tensors, folder), manifest, tensors, folder, backend, attention)
    with unwrapped(model) as inner:
        _fill(inner, manifest, tensors, folder, backend, attention)
    return model


def _fill(
    model: nn.Module,
    manifest: Mapping[str, Any],
    tensors: dict[str, Tensor],
    folder: Path,
    backend: str,
    attention: Attention,
) -> nn.Module:
    first = next((p for p in model.parameters() if p.device.type != "meta"), None)
    device = torch.device("cpu") if first is None else first.device
    outside = {name: tensors.pop(name) for name in manifest.get("outside", ()) if _require(name, tensors, folder)}
    refuse_without(model, tensors, folder)
    swap_empty(model, manifest)
    try:
        model.load_state_dict(tensors, assign=True, strict=True)
    except DAMAGE as error:  # beside RuntimeError what built layers raise that are of no size
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise QuantizationError(f"{folder} does not fit this model: {told[-1].strip()}") from error
    _check_dtypes(model, folder)
    for name, tensor in outside.items():
        set_buffer(model, name, tensor, folder)
    # what the first versions did not store (position tables …) was built, so it must not be on meta
    left = [
        name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.device.type == "meta"
    ]
    if left:
        raise QuantizationError(f"{left[0]} of the model is not stored in {folder}; pass a model that is not on meta")
    model = refuse_adapters_(tell_weights_(refuse_save_pretrained_(model.to(device).eval())))
    set_backend_(model, backend, attention=attention)
    return model


def set_buffer(model: nn.Module, name: str, tensor: Tensor, folder: Path | str) -> None:
    """A buffer that no state dict holds; shared ones stay shared, as they are one tensor here."""
    owner, _, key = name.rpartition(".")
    try:
        model.get_submodule(owner).register_buffer(key, tensor, persistent=False)
    except (AttributeError, KeyError) as error:
        raise QuantizationError(
            f"{folder} does not fit this model: it has no place for the buffer {name}; pass a model of the saved "
            "architecture"
        ) from error


def _read_tensors(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        raise QuantizationError(f"{path} is missing; save the model again or copy the whole folder")
    if path.stat().st_size != manifest["bytes"]:
        raise QuantizationError(
            f"{path} has {path.stat().st_size} bytes instead of {manifest['bytes']}: it is "
            "truncated or from another model; save or copy it again"
        )
    if manifest.get("sha256") not in (None, sha256_of(path)):  # the first versions wrote none
        raise QuantizationError(f"{path} is damaged: its SHA-256 is not the one in {MANIFEST}; save or copy it again")
    try:
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, *DAMAGE) as error:
        raise QuantizationError(f"{path} is damaged ({first_line(error)}); save or copy it again") from error
    for name in (*manifest.get("strides", ()), *manifest["aliases"].values()):
        _require(name, tensors, folder)
    for name, stride in manifest.get("strides", {}).items():
        tensors[name] = strided(name, tensors[name], stride, folder)
    return {**tensors, **{alias: tensors[name] for alias, name in manifest["aliases"].items()}}


def _require(name: str, tensors: Mapping[str, Tensor], folder: Path) -> bool:
    if name not in tensors:
        raise QuantizationError(
            f"{folder} is damaged: {MANIFEST} names a tensor {name!r}, which {WEIGHTS} does not hold; save the model "
            "again"
        )
    return True


def strided(name: str, tensor: Tensor, stride: list[int], folder: Path | str) -> Tensor:
    """The same values in another order of memory, without gaps."""
    step = 1
    for size, own in sorted(zip(tensor.shape, stride, strict=False), key=lambda pair: pair[1]):
        if size > 1 and own != step:
            break
        step *= size
    if len(stride) != tensor.dim() or step != tensor.numel() or not all(0 <= own < 2**63 for own in stride):
        raise QuantizationError(
            f"{folder} is damaged: strides {described(stride)} do not fit {name}, of shape {list(tensor.shape)}; save "
            "the model again"
        )
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def _check_dtypes(model: nn.Module, folder: Path) -> None:
    """Codes and scales are of the dtypes that their layout says, and finite, which load_state_dict does not look at."""
    for name, layer in model.named_modules():
        for key, (_, dtype) in layer.layout.buffers().items() if isinstance(layer, QuantLayer) else ():
            found = layer.tensors()[key].dtype
            if found != dtype and not (found.is_floating_point and dtype.is_floating_point):
                raise QuantizationError(
                    f"{folder} is damaged: {name}.{key} is stored as {found}, its layout says {dtype}; save the model "
                    "again"
                )
            refuse_infinite(f"{name}.{key}", layer.tensors()[key], folder)


def refuse_infinite(name: str, tensor: Tensor, folder: Path | str) -> None:
    """Raise if a scale, or another of a quantized layer's numbers, is NaN or infinite, as none is that was solved."""
    if tensor.is_floating_point() and not tensor.float().isfinite().all():
        raise QuantizationError(f"{folder} is damaged: {name} holds NaN or infinities; save or copy the model again")


def _build(manifest: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path) -> nn.Module:
    module, name = manifest["class"]["module"], manifest["class"]["name"]
    allowed = any(module == package or module.startswith(package + ".") for package in PACKAGES)
    if manifest["config"] is None or not allowed or "." in name:
        raise QuantizationError(
            f"{folder} holds a {module}.{name}, which cannot be rebuilt from the manifest; pass "
            "model= (a float model of that architecture)"
        )
    kind = _model_class(module, name)
    if kind is None:
        raise QuantizationError(
            f"{folder} holds a {module}.{name}, which is no model class that is known here; pass model="
        )
    try:
        with building(), bounded_building(*_largest(manifest, tensors)):
            built: nn.Module = kind.from_config(manifest["config"])
    except Exception as error:  # whatever the class raises on a config that it did not write
        raise QuantizationError(
            f"{folder} holds a {module}.{name} that cannot be built from its config ({type(error).__name__}: "
            f"{first_line(error)}); save the model again, or pass model="
        ) from error
    return built


def _largest(manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """Tensors and numbers that the float model of this file can have, generously."""
    return 2 * len(tensors), 8 * manifest["bytes"] + TABLES


def _model_class(module: str, name: str) -> Any:
    """The named class; None unless a module with a config."""
    try:
        kind = getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError, RuntimeError):  # no such module, no name of one, or one that lacks a package
        return None
    is_model = isinstance(kind, type) and issubclass(kind, nn.Module) and hasattr(kind, "from_config")
    return kind if is_model else None


def swap_empty(model: nn.Module, manifest: Mapping[str, Any]) -> None:
    """Put layers without numbers, on the meta device, in the place of those that a manifest's "layers" names.

    Raises:
        QuantizationError: the model is of another architecture.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    replacements: dict[int, nn.Module] = {}
    bias = next((entry["bias_dtype"] for entry in manifest["layers"].values() if entry["bias_dtype"]), None)
    for name, entry in manifest["layers"].items():
        replacements[id(modules.get(name))] = _empty_layer(name, entry, modules.get(name), bias)
    swap_(model, replacements)


def _empty_layer(name: str, entry: Mapping[str, Any], old: nn.Module | None, bias: str | None) -> QuantLayer:
    """The quantized layer, on meta, that takes the place of `old`."""
    is_linear = "window" not in entry
    if not isinstance(old, nn.Linear if is_linear else nn.Conv2d):
        what = "linear" if is_linear else "convolution"
        raise QuantizationError(f"the model has no {what} {name!r}; pass a model of the saved architecture")
    saved = tuple(entry["layout"].get(key) for key in ("in_features", "out_features"))
    found = _size(old)
    if found != saved:
        raise QuantizationError(
            f"{name} of the model is {found[0]} -> {found[1]}, the saved one {described(saved[0])} -> "
            f"{described(saved[1])}: it does not fit; pass a model of that architecture"
        )
    try:
        window = None if is_linear else Window.from_dict(entry["window"])
        layout = Layout.from_dict(entry["layout"], asker=f"layer {name!r}")
        _check_window(window, layout, old)
        return QuantLinear.empty(layout, window, **_dtypes(entry, old, bias), device="meta")
    except DAMAGE as error:
        if isinstance(error, QuantizationError) and str(error).startswith(f"layer {name!r}"):
            raise
        raise QuantizationError(
            f"layer {name!r} cannot be read ({type(error).__name__}: {first_line(error)}); save the model again"
        ) from error


def _check_window(window: Window | None, layout: Layout, old: nn.Module) -> None:
    taps = 1 if window is None else window.taps
    if layout.taps != taps:
        raise ValueError(f"{layout.taps} taps do not fit the model's layer")
    if window is not None and isinstance(old, nn.Conv2d) and window != Window.of(old):
        told, own = dataclasses.asdict(window), dataclasses.asdict(Window.of(old))
        key = next(key for key in told if told[key] != own[key])
        raise ValueError(f"its {key} {told[key]} is not the model's {own[key]}")


def _dtypes(entry: Mapping[str, Any], old: nn.Module, other: str | None) -> dict[str, torch.dtype]:
    """Of the weight and the bias; the first versions stored the bias's alone, and `other` is another layer's."""
    known = entry.get("dtype") or entry["bias_dtype"] or other
    assert isinstance(old.weight, Tensor)
    dtype = _dtype(known) if known else old.weight.dtype
    return {"dtype": dtype, "bias_dtype": _dtype(entry["bias_dtype"] or known or "float32")}


def _dtype(name: str) -> torch.dtype:
    found = vars(torch).get(name)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"{described(name)} is no floating-point dtype of torch")
    return found


def _size(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, QuantLayer):
        return module.in_features, module.out_features
    assert isinstance(module.weight, Tensor)
    return width_of(module), len(module.weight)
