"""Write a quantized model."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from segquant.checks import checked, described
from segquant.errors import QuantizationError
from segquant.files import make_folder_beside, publish, sha256_of, write_tensors, write_text
from segquant.layers.layer import QuantLayer
from segquant.layers.linear import QuantConv2d
from segquant.layers.saving import refuse_stale
from segquant.modules.wrappers import unwrapped
from segquant.quantize.outcome import Outcome
from segquant.serialize.config import to_config
from segquant.serialize.digest import digests
from segquant.serialize.manifest import CONFIG, MANIFEST, SCHEMA, WEIGHTS

INDEX = "diffusion_pytorch_model.safetensors.index.json"
"""As diffusers names it."""
_OF_A_LOADED_MODEL = ("quantization_config", "_pre_quantization_dtype")
"""Entries that diffusers adds to the config."""


@checked()
def save_quantized(
    model: nn.Module,
    directory: str | Path,
    outcome: Outcome | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write `quantized.safetensors` and `quantized.json`; the folder appears by one rename and replaces an older one.

    Args:
        model: after `quantize_`; compiled, or in a wrapper for data parallelism, it is saved without that.
        directory: returned; its parent is created.
        outcome: of `quantize_with_outcome_`, for `read_outcome`.
        extra: JSON-ready additions to the manifest.

    Raises:
        QuantizationError: no quantized linear, a tensor without values, a buffer written to unseen, or something else
            is there.
    """
    target = Path(directory)
    if target.name in ("", ".."):
        raise QuantizationError(f"{str(directory)!r} names no folder of its own; give the name of one")
    if target.exists() and not (target / MANIFEST).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise QuantizationError(f"{target} exists and is no quantized model; give another directory")
    with unwrapped(model) as inner:
        refuse_stale(inner)
        found, manifest = describe(inner)
        config = _diffusers_config(manifest)
    manifest.update({} if outcome is None else outcome.to_dict())
    manifest["extra"] = _json_ready(extra or {})
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = make_folder_beside(target)
    try:
        write_tensors(temporary / WEIGHTS, found.tensors, digests(found.tensors))
        manifest["bytes"] = (temporary / WEIGHTS).stat().st_size
        manifest["sha256"] = sha256_of(temporary / WEIGHTS)
        if config is not None:
            write_text(temporary / CONFIG, json.dumps(config) + "\n")
            write_text(temporary / INDEX, json.dumps(_index(found.tensors)) + "\n")
        write_text(temporary / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        publish(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def describe(model: nn.Module) -> tuple[StoredTensors, dict[str, Any]]:
    """What is stored of a model without wrappers, and the manifest that makes its layers again.

    Raises:
        QuantizationError: no quantized linear, or a tensor without values.
    """
    found = StoredTensors.of(model)
    return found, _manifest(model, found)


def _diffusers_config(manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """diffusers' config.json, for `segquant.deploy.diffusers`; None of a model that it does not read."""
    if manifest["config"] is None or not manifest["class"]["module"].startswith("diffusers."):
        return None
    version = sys.modules["diffusers"].__version__
    named = {"_class_name": manifest["class"]["name"], "_diffusers_version": version}
    return {**manifest["config"], **named, "quantization_config": to_config(manifest)}


def _index(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """diffusers' list of files, with the one."""
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return {"metadata": {"total_size": total}, "weight_map": dict.fromkeys(tensors, WEIGHTS)}


def _json_ready(extra: Mapping[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(extra, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise QuantizationError(f"extra cannot be written as JSON: {error}; give numbers, strings and lists") from error
    return dict(extra)


@dataclass
class StoredTensors:
    """What is stored.

    Attributes:
        tensors: by name, contiguous, without duplicates.
        aliases: other names, and the stored one.
        outside: names of buffers that no state dict holds; a cast changes them too.
        strides: of tensors that are not contiguous in the model (channels_last): they decide the order of sums.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    outside: list[str] = field(default_factory=list)
    strides: dict[str, list[int]] = field(default_factory=dict)

    @staticmethod
    def of(model: nn.Module) -> StoredTensors:
        found, seen = StoredTensors(), dict[int, str]()
        without = set(_float_likes(model))
        state = {name: t for name, t in model.state_dict(keep_vars=True).items() if name not in without}
        others = {name: t for name, t in model.named_buffers(remove_duplicate=False) if name not in state}
        for name, tensor in (*state.items(), *others.items()):
            if not isinstance(tensor, Tensor):
                raise QuantizationError(
                    f"{name} of the model is {described(tensor)}, and no tensor, which takes pickle to be saved; let "
                    "get_extra_state return a tensor and set_extra_state take it"
                )
            _refuse_meta(name, tensor)
            if name in others:
                found.outside.append(name)
            if id(tensor) in seen:
                found.aliases[name] = seen[id(tensor)]
                continue
            seen[id(tensor)] = name
            found.tensors[name] = tensor.detach().cpu().contiguous().clone()
            if not tensor.is_contiguous() and torch.empty_like(tensor, device="meta").stride() == tensor.stride():
                found.strides[name] = list(tensor.stride())
        return found


def refuse_valueless(model: nn.Module) -> None:
    """Raise if one of its tensors has no values."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        _refuse_meta(name, tensor)


def _refuse_meta(name: str, tensor: Tensor) -> None:
    if tensor.device.type == "meta":
        raise QuantizationError(
            f"{name} of the model has no values (it is on the meta device); bring the model into memory before it is "
            "saved, for example by accelerate.hooks.remove_hook_from_module(model, recurse=True)"
        )


def _float_likes(model: nn.Module) -> Iterator[str]:
    """Names of parameters without elements, whose dtype the manifest has."""
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, QuantLayer):
            yield f"{name}.float_like"


def _manifest(model: nn.Module, found: StoredTensors) -> dict[str, Any]:
    layers = {name: _entry(module) for name, module in model.named_modules() if isinstance(module, QuantLayer)}
    if not layers:
        raise QuantizationError("the model has no quantized linear; run quantize_ first, or save it with its own tools")
    kind = type(model)
    config = getattr(model, "config", None)
    rebuildable = hasattr(kind, "from_config") and isinstance(config, Mapping)
    return {
        "schema": SCHEMA,
        "versions": {"torch": torch.__version__, "safetensors": safetensors.__version__},
        "class": {"module": kind.__module__, "name": kind.__qualname__},
        "config": plain(_own(config or {})) if rebuildable else None,
        "aliases": found.aliases,
        "outside": found.outside,
        "strides": found.strides,
        "layers": layers,
    }


def _own(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _OF_A_LOADED_MODEL}


def _entry(module: QuantLayer) -> dict[str, Any]:
    window = {"window": dataclasses.asdict(module.window)} if isinstance(module, QuantConv2d) else {}
    dtypes = {"dtype": _dtype(module.float_like), "bias_dtype": _dtype(module.bias)}
    return {"layout": module.layout.to_dict(), **dtypes, **window}


def _dtype(tensor: Tensor | None) -> str | None:
    return None if tensor is None else str(tensor.dtype).removeprefix("torch.")


def plain(value: Any) -> Any:
    """As JSON; what JSON lacks becomes its repr."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value if value is None or isinstance(value, (str, int, float, bool)) else repr(value)
