"""Read a quantized model."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from segquant.checks import checked
from segquant.errors import QuantizationError
from segquant.layers.backends import set_backend_
from segquant.layers.layer import QuantLayer
from segquant.layers.linear import QuantLinear
from segquant.layers.saving import refuse_save_pretrained_
from segquant.layers.state_dict import tell_weights_
from segquant.modules.layers import width_of
from segquant.modules.state import building, own_state
from segquant.modules.swap import swap_
from segquant.modules.window import Window
from segquant.modules.wrappers import unwrapped
from segquant.numerics.layout import Layout
from segquant.serialize.manifest import WEIGHTS, read_manifest

PACKAGES = ("diffusers", "transformers", "torch.nn")
"""Packages whose classes load_quantized may import by the name found in a manifest."""


@checked()
@own_state()
def load_quantized(directory: str | Path, model: nn.Module | None = None, *, backend: str = "reference") -> nn.Module:
    """Read a saved model, in eval mode; its outputs are bit for bit those of the saved one.

    Args:
        model: float model of the same architecture, maybe compiled, filled in place on its device (the CPU if on
            meta). If None, built on the CPU from the recorded class and config (diffusers).
        backend: see `set_backend_`.

    Raises:
        QuantizationError: a file is missing, truncated, of another schema, or does not fit; a transform is not
            registered; the backend cannot run a layer.
    """
    folder = Path(directory)
    manifest = read_manifest(folder)
    tensors = _read_tensors(folder, manifest)
    if model is None:
        return _fill(_build(manifest, folder), manifest, tensors, folder, backend)
    with unwrapped(model) as inner:
        _fill(inner, manifest, tensors, folder, backend)
    return model


def _fill(
    model: nn.Module, manifest: Mapping[str, Any], tensors: dict[str, Tensor], folder: Path, backend: str
) -> nn.Module:
    first = next((p for p in model.parameters() if p.device.type != "meta"), None)
    device = torch.device("cpu") if first is None else first.device
    outside = {name: tensors.pop(name) for name in manifest.get("outside", ())}
    _swap_empty(model, manifest)
    try:
        model.load_state_dict(tensors, assign=True, strict=True)
    except RuntimeError as error:
        raise QuantizationError(f"{folder} does not fit this model: {str(error).splitlines()[-1].strip()}") from error
    for name, tensor in outside.items():
        _set_buffer(model, name, tensor, folder)
    # what the first versions did not store (position tables …) was built, so it must not be on meta
    left = [
        name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.device.type == "meta"
    ]
    if left:
        raise QuantizationError(f"{left[0]} of the model is not stored in {folder}; pass a model that is not on meta")
    return set_backend_(tell_weights_(refuse_save_pretrained_(model.to(device).eval())), backend)


def _set_buffer(model: nn.Module, name: str, tensor: Tensor, folder: Path) -> None:
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
    try:
        tensors = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise QuantizationError(f"{path} is damaged ({error}); save or copy it again") from error
    for name, stride in manifest.get("strides", {}).items():
        tensor = tensors[name]
        tensors[name] = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device)
        tensors[name].copy_(tensor)
    return {**tensors, **{alias: tensors[name] for alias, name in manifest["aliases"].items()}}


def _build(manifest: Mapping[str, Any], folder: Path) -> nn.Module:
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
    with building():
        built: nn.Module = kind.from_config(manifest["config"])
    return built


def _model_class(module: str, name: str) -> Any:
    """The named class; None unless a module with a config."""
    try:
        kind = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
    is_model = isinstance(kind, type) and issubclass(kind, nn.Module) and hasattr(kind, "from_config")
    return kind if is_model else None


def _swap_empty(model: nn.Module, manifest: Mapping[str, Any]) -> None:
    modules = dict(model.named_modules(remove_duplicate=False))
    replacements: dict[int, nn.Module] = {}
    bias = next((entry["bias_dtype"] for entry in manifest["layers"].values() if entry["bias_dtype"]), None)
    for name, entry in manifest["layers"].items():
        old = modules.get(name)
        layout = _layout(name, entry["layout"])
        window = Window.from_dict(entry["window"]) if "window" in entry else None
        if not isinstance(old, nn.Linear if window is None else nn.Conv2d):
            what = "linear" if window is None else "convolution"
            of = "with the saved adapters (peft)" if "base_layer" in name else "of the saved architecture"
            raise QuantizationError(f"the model has no {what} {name!r}; pass a model {of}")
        found = _size(old)
        if found != (layout.in_features, layout.out_features):
            raise QuantizationError(
                f"{name} of the model is {found[0]} -> {found[1]}, the saved one "
                f"{layout.in_features} -> {layout.out_features}: it does not fit; pass a model of that architecture"
            )
        dtypes = _dtypes(entry, old, bias)
        replacements[id(old)] = QuantLinear.empty(layout, window, **dtypes, device="meta")
    swap_(model, replacements)


def _dtypes(entry: Mapping[str, Any], old: nn.Module, other: str | None) -> dict[str, torch.dtype]:
    """Of the weight and the bias; the first versions stored the bias's alone, and `other` is another layer's."""
    known = entry.get("dtype") or entry["bias_dtype"] or other
    assert isinstance(old.weight, Tensor)
    dtype = getattr(torch, known) if known else old.weight.dtype
    return {"dtype": dtype, "bias_dtype": getattr(torch, entry["bias_dtype"] or known or "float32")}


def _layout(name: str, values: Mapping[str, Any]) -> Layout:
    try:
        return Layout.from_dict(values, asker=f"layer {name!r}")
    except QuantizationError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise QuantizationError(
            f"the layout of layer {name!r} cannot be read ({error}); save the model again"
        ) from error


def _size(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, QuantLayer):
        return module.in_features, module.out_features
    assert isinstance(module.weight, Tensor)
    return width_of(module), len(module.weight)
