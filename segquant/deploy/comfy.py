"""ComfyUI's native int8 checkpoint: one safetensors file, also of stable-diffusion.cpp's kind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from segquant.checks import checked
from segquant.deploy.comfy_names import Place, places, tensor_name
from segquant.deploy.plain import byte_codes, has_zero_point, row_scales, why_not_plain, widened
from segquant.deploy.report import ExportedLayer, ExportReport, refuse_unfit, size_of
from segquant.errors import QuantizationError
from segquant.files import write_whole
from segquant.layers.adapters import refuse_attached
from segquant.layers.layer import QuantLayer
from segquant.modules.wrappers import unwrapped

FORMAT = {"format": "int8_tensorwise"}
"""ComfyUI's name, also of weights with a scale per row; inputs are quantized per token when it runs."""
NAMES = ("comfy", "diffusers")
OTHER_INPUT = "inputs per token instead of {}"


@dataclass
class _Rows:
    """A layer's rows, or those of one part of a fused layer."""

    name: str
    layer: nn.Module
    place: Place
    reason: str | None
    """Why it is float; None if int8; "" if the model has it in float."""


@checked()
def export_comfy(
    model: nn.Module, path: str | Path, *, rest: str = "refuse", names: str = "comfy", prefix: str = ""
) -> ExportReport:
    """Write the checkpoint of a denoiser for ComfyUI's folder diffusion_models; returns what became of each layer.

    The format has int8 weights with a scale per output, and quantizes inputs symmetrically per token: layers whose
    model has other int8 inputs get that, as the report says; rotation, pieces, DualScale and smoothing it cannot hold.
    `deploy="comfy"` folds smoothing into the norms before; adapters of the float model do not fit such a file.

    Args:
        model: a quantized model of diffusers; not modified.
        rest: "refuse" raises where layers do not fit, "float" writes them dequantized.
        names: "comfy", or "diffusers" for the model's own.
        prefix: of every name, as "model.diffusion_model.".

    Raises:
        QuantizationError: layers do not fit, adapters are attached, no quantized layer is there, or ComfyUI's names are
            not known.
    """
    if names not in NAMES:
        raise QuantizationError(f"names={names!r}; give 'comfy' or 'diffusers'")
    with unwrapped(model) as inner:
        if not any(isinstance(module, QuantLayer) for module in inner.modules()):
            raise QuantizationError("the model has no quantized linear; run quantize_ before export_comfy")
        refuse_attached(inner, "export_comfy")
        where = places(inner) if names == "comfy" else _as_they_are(inner)
        groups = _groups(inner, where)
        reasons = {row.name: row.reason for rows in groups.values() for row in rows if row.reason}
        refuse_unfit(reasons, rest, "ComfyUI's int8 format")
        tensors: dict[str, Tensor] = {}
        told: list[ExportedLayer] = []
        for rows in groups.values():
            tensors |= _written(rows, told)
    named = {f"{prefix}{name}": tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(Path(path), lambda partial: save_file(named, partial, {"format": "pt"}))
    return ExportReport(Path(path), tuple(told))


def _as_they_are(model: nn.Module) -> dict[str, Place]:
    return {name: Place(name) for name, _ in model.named_modules()}


def _groups(model: nn.Module, where: Mapping[str, Place]) -> dict[str, list[_Rows]]:
    """Modules by their name there; those of one fused layer are all int8 or all float."""
    found: dict[str, list[_Rows]] = {}
    for name, module in model.named_modules():
        if name in where:
            reason = why_not_plain(module) if isinstance(module, QuantLayer) else ""
            found.setdefault(where[name].module, []).append(_Rows(name, module, where[name], reason))
    for rows in found.values():
        rows.sort(key=lambda row: row.place.part or 0)
        floats = [row for row in rows if row.reason is not None]
        if len(rows) > 1 and 0 < len(floats) < len(rows):
            for row in rows:
                if row.reason is None:
                    row.reason = f"ComfyUI fuses it with {floats[0].name}, which is float"
    return found


def _written(rows: list[_Rows], told: list[ExportedLayer]) -> dict[str, Tensor]:
    parts = []
    for row in rows:
        layer = row.layer
        if row.reason is None:
            assert isinstance(layer, QuantLayer)
            own = {"weight": byte_codes(layer), "weight_scale": row_scales(layer)}
            note = "; ".join(each for each in (widened(layer), _note(layer)) if each)
        elif isinstance(layer, QuantLayer):
            own, note = {"weight": layer._float_weight()}, row.reason
        else:
            own, note = _own_tensors(layer), ""
        if isinstance(layer, QuantLayer):
            form = "int8" if row.reason is None else "float"
            told.append(ExportedLayer(row.name, form, note, size_of(own.values())))
            if layer.bias is not None:
                own["bias"] = layer.bias
        parts.append({key: _halves_swapped(t) for key, t in own.items()} if row.place.swapped else own)
    place = rows[0].place
    merged = {key: torch.cat([part[key] for part in parts]) if len(parts) > 1 else t for key, t in parts[0].items()}
    if rows[0].reason is None:
        merged["comfy_quant"] = torch.tensor(list(json.dumps(FORMAT).encode()), dtype=torch.uint8, device="cpu")
    return {tensor_name(place, key): tensor for key, tensor in merged.items()}


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    kept = {key: tensor for key, tensor in module._parameters.items() if tensor is not None}
    buffers = {
        key: tensor
        for key, tensor in module._buffers.items()
        if tensor is not None and key not in module._non_persistent_buffers_set
    }
    return {**kept, **buffers}


def _note(layer: QuantLayer) -> str:
    spec = layer.layout.scheme.input
    assert spec is not None
    zero = has_zero_point(layer)
    if spec.dynamic and spec.granularity == "token" and not zero:
        return ""
    grid = f"{'one asymmetric grid' if zero else 'one scale'} per {spec.granularity}"
    return OTHER_INPUT.format(grid if spec.dynamic else f"{grid}, static")


def _halves_swapped(tensor: Tensor) -> Tensor:
    first, second = tensor.chunk(2)
    return torch.cat((second, first))
