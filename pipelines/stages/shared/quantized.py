"""Calls of segquant and other tools."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segquant.auto.sensitivity import Combine
from segquant.files import write_json
from segquant.graph.segments import Segments
from segquant.keep import Keeper
from segquant.measure import model_errors
from segquant.method.plan_file import PLAN, write_plan
from segquant.method.spec import Method
from segquant.modules.memory import free_bytes
from segquant.modules.tensors import model_weight_bytes
from segquant.quantize import quantize_with_outcome_
from segquant.quantize.outcome import Outcome
from segquant.serialize import load_quantized, save_quantized
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.loading.components import empty_cache, hook_of
from segquant_bench.pipelines.peers import Peer, tensors_digest
from segquant_bench.pipelines.runtime.progress import progress_bar
from segquant_bench.pipelines.sampling.samples import Batches, Sample
from segquant_bench.pipelines.stages.shared.segments import wants_graph

PEER_RECORD = "peer.json"


def quantize_copy(
    module: nn.Module,
    method: Method | Peer,
    batches: Batches,
    segments: Mapping[str, Segments],
    label: str,
    keep: Keeper | None = None,
    combine: Combine | None = None,
) -> tuple[nn.Module, Outcome | None]:
    """A quantized copy of a component, and its outcome, None by another tool.

    Args:
        keep: takes what is finished; another tool begins again.
        combine: what the pipeline makes of the module's output, see `segquant.quantize_`.

    Raises:
        PipelineError: there is no room for a copy.
        QuantizationError: the method cannot do it.
    """
    quantized = twin(module)
    if isinstance(method, Peer):
        return method.quantize_(quantized, batches), None
    with progress_bar(label) as progress:
        wanted = segments if wants_graph(method) else None
        return quantized, quantize_with_outcome_(
            quantized, method, batches, wanted, progress=progress, keep=keep, combine=combine
        )


def twin(module: nn.Module) -> nn.Module:
    """A deep copy on the device that the module runs on.

    Raises:
        PipelineError: there is no room for it.
    """
    door = hook_of(module)
    if door is None:
        device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    else:
        door.slot.empty()
        device = door.slot.device
    _check_room(module, device, can_wait=door is None and device.type != "cpu")
    memo = {id(tensor): _copied(tensor, device) for tensor in (*module.parameters(), *module.buffers())}
    copied = copy.deepcopy(module, memo)
    if door is not None:
        door(copied)
    return copied


def _copied(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    found = tensor.detach().to(device, copy=True)
    return nn.Parameter(found, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else found


def _check_room(module: nn.Module, device: torch.device, *, can_wait: bool) -> None:
    empty_cache(device)
    needed, free = model_weight_bytes(module), free_bytes(device)
    if free is not None and needed > free:
        advice = "model.offload=components or model.offload=blocks" if can_wait else "model.offload=blocks"
        raise PipelineError(
            f"quantizing needs a copy of {type(module).__name__}, {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are "
            f"free on {device}; use {advice}"
        )


def denoiser_errors(
    denoiser: nn.Module,
    quantized: nn.Module,
    method: Method | Peer,
    held_out: Sequence[Sample],
    size: int,
    device: str,
    keep: Keeper | None = None,
) -> dict[str, Any]:
    """errors.json: per layer, of the output, per sample; and bytes."""
    batches = Batches(held_out, size, device)
    names = method.layers(denoiser) if isinstance(method, Peer) else None
    found = model_errors(denoiser, quantized, batches, names, parts=batches.sizes, keep=keep)
    return {
        "layer_errors": found.layers,
        "output_error": found.output,
        "per_row_output_errors": found.parts,
        "per_row_energies": found.energies,
        "layer_step_errors": _by_step(found.layer_parts, [sample.step for sample in held_out]),
        "per_row_steps": [sample.step for sample in held_out],
        "per_row_prompts": [sample.prompt for sample in held_out],
        "weight_bytes": method.weight_bytes(quantized, names or [])
        if isinstance(method, Peer)
        else model_weight_bytes(quantized),
    }


def _by_step(parts: Mapping[str, Sequence[tuple[float, float]]], steps: Sequence[int]) -> dict[str, Any]:
    """Every layer's relative error at each sampling step; None where nothing is known of it."""
    known = sorted(set(steps))
    layers: dict[str, list[float | None]] = {}
    for layer, found in parts.items():
        sums = {step: [0.0, 0.0] for step in known}
        for step, (error, energy) in zip(steps, found, strict=True):
            sums[step][0] += error
            sums[step][1] += energy
        # five digits: hundreds of layers at dozens of steps are most of results.json
        layers[layer] = [
            float(f"{math.sqrt(error / energy):.5g}") if energy else None for error, energy in sums.values()
        ]
    return {"steps": known, "layers": layers}


def component_errors(
    name: str,
    module: nn.Module,
    quantized: nn.Module,
    held_out: Sequence[Sample],
    size: int,
    device: str,
    keep: Keeper | None = None,
) -> dict[str, Any]:
    """Relative errors of every layer, as "NAME.LAYER", and of the output; and bytes."""
    found = model_errors(module, quantized, Batches(held_out, size, device), keep=keep)
    return {
        "layer_errors": {f"{name}.{layer}": error for layer, error in found.layers.items()},
        "output_error": found.output,
        "weight_bytes": model_weight_bytes(quantized),
        "weight_bytes_float": model_weight_bytes(module),
    }


def save_model(quantized: nn.Module, folder: Path, outcome: Outcome | None) -> None:
    save_quantized(quantized, folder, outcome)


def load_model(folder: Path, like: nn.Module | None = None) -> nn.Module:
    """Inverse of `save_model`, into `like` if given."""
    return load_quantized(folder, like)


@contextmanager
def in_place(pipeline: Any, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    originals = {name: pipeline.components[name] for name in modules}
    try:
        for name, module in modules.items():
            setattr(pipeline, name, module)
        yield
    finally:
        for name, module in originals.items():
            setattr(pipeline, name, module)


def save_denoiser(quantized: nn.Module, outcome: Outcome | None, method: Method | Peer, folder: Path) -> None:
    """Write denoiser/, and plan.json where layers chose for themselves; peer.json for other tools."""
    if isinstance(method, Peer):
        write_json(folder / PEER_RECORD, {**method.to_dict(), "digest": tensors_digest(quantized)})
        return
    save_model(quantized, folder / "denoiser", outcome)
    if outcome is not None and outcome.choices is not None:
        write_plan(folder / PLAN, method, outcome.choices)


def check_same(quantized: nn.Module, folder: Path) -> nn.Module:
    """The denoiser that another tool made again.

    Raises:
        PipelineError: it differs from the measured one.
    """
    record = json.loads((folder / PEER_RECORD).read_text(encoding="utf-8"))
    if tensors_digest(quantized) != record["digest"]:
        raise PipelineError(
            f"{record['peer']} made another model from the same calibration than the one measured in {folder}; "
            "remove that folder and run again"
        )
    return quantized
