"""Save and load quantized models: a safetensors and a JSON file."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from segquant.errors import QuantizationError
from segquant.layers.backends import set_backend_
from segquant.layers.linear import QuantConv2d, QuantLinear
from segquant.modules.layers import width_of
from segquant.modules.state import building, own_state
from segquant.modules.swap import swap_
from segquant.modules.window import Window
from segquant.numerics.layout import Layout
from segquant.quantize.outcome import Outcome

WEIGHTS = "quantized.safetensors"
MANIFEST = "quantized.json"
SCHEMA = 2
READS = (1, 2)
"""Schemas that load_quantized reads; 1 named smoothing, rotation and ranks in every layout, and had a flat method."""
PACKAGES = ("diffusers", "transformers", "torch.nn")
"""Packages whose classes load_quantized may import by the name found in a manifest."""


def save_quantized(
    model: nn.Module,
    directory: str | Path,
    outcome: Outcome | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write `quantized.safetensors` and `quantized.json`; the folder appears by one rename and replaces an older one.

    Args:
        model: after `quantize_`.
        directory: returned; its parent is created.
        outcome: of `quantize_with_outcome_`, for `read_outcome`.
        extra: JSON-ready additions to the manifest.

    Raises:
        QuantizationError: no quantized linear, or something else is there.
    """
    target = Path(directory)
    if target.exists() and not (target / MANIFEST).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise QuantizationError(f"{target} exists and is no quantized model; give another directory")
    tensors, aliases = _distinct(model)
    manifest = _manifest(model, aliases)
    manifest.update({} if outcome is None else outcome.to_dict())
    manifest["extra"] = dict(extra or {})
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        safetensors.torch.save_file(tensors, temporary / WEIGHTS)
        manifest["bytes"] = (temporary / WEIGHTS).stat().st_size
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        temporary.chmod(0o755)
        _publish(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _publish(temporary: Path, target: Path) -> None:
    if not target.exists():
        os.replace(temporary, target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    os.replace(target, old / "was")
    os.replace(temporary, target)
    shutil.rmtree(old)


def _distinct(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """State dict without duplicates, and alias -> kept name."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            aliases[name] = seen[id(tensor)]
            continue
        seen[id(tensor)] = name
        tensors[name] = tensor.detach().cpu().contiguous().clone()
    return tensors, aliases


def _manifest(model: nn.Module, aliases: Mapping[str, str]) -> dict[str, Any]:
    layers = {
        name: {"layout": module.layout.to_dict(), "bias_dtype": _dtype(module.bias), **_window(module)}
        for name, module in model.named_modules()
        if isinstance(module, QuantLinear)
    }
    if not layers:
        raise QuantizationError("the model has no quantized linear; run quantize_ first, or save it with its own tools")
    kind = type(model)
    config = getattr(model, "config", None)
    rebuildable = hasattr(kind, "from_config") and isinstance(config, Mapping)
    return {
        "schema": SCHEMA,
        "versions": {"torch": torch.__version__, "safetensors": safetensors.__version__},
        "class": {"module": kind.__module__, "name": kind.__qualname__},
        "config": _plain(config) if rebuildable else None,
        "aliases": dict(aliases),
        "layers": layers,
    }


def _window(module: QuantLinear) -> dict[str, Any]:
    return {"window": dataclasses.asdict(module.window)} if isinstance(module, QuantConv2d) else {}


def _dtype(tensor: Tensor | None) -> str | None:
    return None if tensor is None else str(tensor.dtype).removeprefix("torch.")


def _plain(value: Any) -> Any:
    """As JSON; what JSON lacks becomes its repr."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value if value is None or isinstance(value, (str, int, float, bool)) else repr(value)


def read_outcome(directory: str | Path) -> Outcome | None:
    """The outcome saved with a model, or None.

    Raises:
        QuantizationError: no quantized model, or a part is not registered.
    """
    folder = Path(directory)
    manifest = _read_manifest(folder)
    if "method" not in manifest:
        return None
    try:
        return Outcome.from_dict(manifest)
    except QuantizationError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise QuantizationError(
            f"{folder / MANIFEST} has no readable method ({error}); save the model again"
        ) from error


@own_state()
def load_quantized(directory: str | Path, model: nn.Module | None = None, *, backend: str = "reference") -> nn.Module:
    """Read a saved model, in eval mode; its outputs are bit for bit those of the saved one.

    Args:
        model: float model of the same architecture, filled in place on its device (the CPU if on meta). If None, built
            on the CPU from the recorded class and config (diffusers).
        backend: see `set_backend_`.

    Raises:
        QuantizationError: a file is missing, truncated, of another schema, or does not fit; a transform is not
            registered; the backend cannot run a layer.
    """
    folder = Path(directory)
    manifest = _read_manifest(folder)
    tensors = _read_tensors(folder, manifest)
    device = torch.device("cpu")
    if model is None:
        model = _build(manifest, folder)
    else:
        first = next((p for p in model.parameters() if p.device.type != "meta"), None)
        device = first.device if first is not None else device
    _swap_empty(model, manifest)
    try:
        model.load_state_dict(tensors, assign=True, strict=True)
    except RuntimeError as error:
        raise QuantizationError(f"{folder} does not fit this model: {str(error).splitlines()[-1].strip()}") from error
    # buffers that no state dict holds (position tables …) were built, not loaded, so they must not be on meta
    left = [
        name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.device.type == "meta"
    ]
    if left:
        raise QuantizationError(f"{left[0]} of the model is not stored in {folder}; pass a model that is not on meta")
    return set_backend_(model.to(device).eval(), backend)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise QuantizationError(
            f"{folder} is no quantized model: {MANIFEST} is missing; give a folder written by save_quantized"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise QuantizationError(f"{path} is no valid JSON ({error}); save the model again") from error
    if manifest.get("schema") not in READS:
        raise QuantizationError(
            f"{path} has schema {manifest.get('schema')}, this version reads {SCHEMA}; save the model again"
        )
    return dict(manifest)


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
    for name, entry in manifest["layers"].items():
        old = modules.get(name)
        layout = _layout(name, entry["layout"])
        window = Window.from_dict(entry["window"]) if "window" in entry else None
        kinds = (nn.Linear, QuantLinear) if window is None else (nn.Conv2d, QuantConv2d)
        if not isinstance(old, kinds):
            what = "linear" if window is None else "convolution"
            raise QuantizationError(f"the model has no {what} {name!r}; pass a model of the saved architecture")
        found = _size(old)
        if found != (layout.in_features, layout.out_features):
            raise QuantizationError(
                f"{name} of the model is {found[0]} -> {found[1]}, the saved one "
                f"{layout.in_features} -> {layout.out_features}: it does not fit; pass a model of that architecture"
            )
        bias = getattr(torch, entry["bias_dtype"]) if entry["bias_dtype"] else torch.float32
        replacements[id(old)] = QuantLinear.empty(layout, window, bias_dtype=bias, device="meta")
    swap_(model, replacements)


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
    if isinstance(module, QuantLinear):
        return module.in_features, module.out_features
    assert isinstance(module.weight, Tensor)
    return width_of(module), len(module.weight)
