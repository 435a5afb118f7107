"""The quantized denoiser, made by segquant or by another tool: made, measured, stored, had again."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import segquant
from segquant import Method, Outcome
from segquant.method.plan_file import PLAN, write_plan
from segquant.modules.memory import free_bytes
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.loading.components import empty_cache, hook_of
from segquant_bench.pipelines.peers import Peer, tensors_digest
from segquant_bench.pipelines.runtime.cache import write_json
from segquant_bench.pipelines.runtime.progress import progress_bar
from segquant_bench.pipelines.sampling.samples import Batches, Sample

PEER_RECORD = "peer.json"


def quantize_copy(
    denoiser: nn.Module, method: Method | Peer, batches: Batches, label: str
) -> tuple[nn.Module, Outcome | None]:
    """A quantized copy of the denoiser, and what was done to it; None where another tool did it.

    Raises:
        PipelineError: there is no room for a copy.
    """
    quantized = twin(denoiser)
    if isinstance(method, Peer):
        return method.quantize_(quantized, batches), None
    with progress_bar(label) as progress:
        return quantized, segquant.quantize_with_outcome_(quantized, method, batches, progress=progress)


def twin(module: nn.Module) -> nn.Module:
    """A deep copy on the device that the module runs on; of an off-loaded component nothing else is there then.

    Raises:
        PipelineError: there is no room for it.
    """
    door = hook_of(module)
    if door is None:
        device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    else:
        door.residence.empty()
        device = door.residence.device
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
    needed, free = segquant.model_weight_bytes(module), free_bytes(device)
    if free is not None and needed > free:
        advice = "model.offload=components or model.offload=blocks" if can_wait else "model.offload=blocks"
        raise PipelineError(
            f"quantizing needs a copy of {type(module).__name__}, {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are "
            f"free on {device}; use {advice}"
        )


def denoiser_errors(
    denoiser: nn.Module, quantized: nn.Module, method: Method | Peer, held_out: Sequence[Sample], size: int, device: str
) -> dict[str, Any]:
    """What errors.json holds: errors per layer, of the output, per held-out row; and bytes."""
    names = method.layers(denoiser) if isinstance(method, Peer) else None
    batches = Batches(held_out, size, device)
    calls = [segquant.output_error(denoiser, quantized, Batches([sample], 1, device)) for sample in held_out]
    stored = segquant.model_weight_bytes(quantized) if names is None else method.weight_bytes(quantized, names)
    return {
        "layer_errors": segquant.layer_errors(denoiser, quantized, batches, names),
        "output_error": segquant.output_error(denoiser, quantized, batches),
        "per_row_output_errors": calls,
        "per_row_steps": [sample.step for sample in held_out],
        "weight_bytes": stored,
    }


def save_denoiser(quantized: nn.Module, outcome: Outcome | None, method: Method | Peer, folder: Path) -> None:
    """denoiser/ as segquant stores it, and plan.json where layers chose for themselves.

    For other tools, whose formats are theirs, peer.json: what was made.
    """
    if isinstance(method, Peer):
        write_json(folder / PEER_RECORD, {**method.to_dict(), "digest": tensors_digest(quantized)})
        return
    segquant.save_quantized(quantized, folder / "denoiser", outcome)
    if outcome is not None and outcome.choices is not None:
        write_plan(folder / PLAN, method, outcome.choices)


def check_same(quantized: nn.Module, folder: Path) -> nn.Module:
    """The denoiser that another tool made again from the same calibration, if it is the one that was measured.

    Raises:
        PipelineError: it differs.
    """
    record = json.loads((folder / PEER_RECORD).read_text(encoding="utf-8"))
    if tensors_digest(quantized) != record["digest"]:
        raise PipelineError(
            f"{record['peer']} made another model from the same calibration than the one measured in {folder}; "
            "remove that folder and run again"
        )
    return quantized
