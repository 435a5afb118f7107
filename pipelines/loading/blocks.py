"""Denoisers with blocks on disk (model.offload=blocks)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn

import segquant
from segquant import Method, Outcome, QuantizationError, Segments
from segquant.keep import Keeper
from segquant.offload.quantize import quantize_offloaded_with_outcome_
from segquant.offload.weights import FileWeights, Offloaded
from segquant_bench.pipelines.config.sections import ModelConfig
from segquant_bench.pipelines.errors import PipelineError, one_line
from segquant_bench.pipelines.loading.files import weight_files
from segquant_bench.pipelines.loading.models import denoiser_class, resolve_device
from segquant_bench.pipelines.loading.whole import built_from, check_tensors
from segquant_bench.pipelines.runtime.progress import progress_bar


def empty_module(kind: Any, folder: Path, dtype: torch.dtype, variant: str | None = None) -> nn.Module:
    """A diffusers model with parameters on the meta device, buffers as initialised.

    Args:
        kind: its class, maybe one that diffusers has split up.
        folder: with config.json.
        variant: of its weights, which say how large it may be.

    Raises:
        PipelineError: its settings are not those of its weights, or cannot be built.
    """
    with built_from(kind, folder, variant), _default_dtype(dtype), init_empty_weights():
        config = kind.load_config(folder)
        module: nn.Module = _successor(kind, config).from_config(config).eval()
        return module


def _successor(kind: Any, config: dict[str, Any]) -> Any:
    # Put off: slow, and a finished run needs none of it.
    from diffusers.models.model_loading_utils import _CLASS_REMAPPING_DICT, _fetch_remapped_cls_from_config

    return _fetch_remapped_cls_from_config(config, kind) if kind.__name__ in _CLASS_REMAPPING_DICT else kind


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def offloaded_denoiser(config: ModelConfig, directory: Path) -> Offloaded:
    """The denoiser with its blocks on disk; same numbers.

    Raises:
        PipelineError: a weight is missing, misshapen or left, settings that cannot be built, or there are no blocks.
    """
    kind, folder = denoiser_class(config, directory)
    dtype, device = getattr(torch, config.dtype), resolve_device(config.device)
    model = empty_module(kind, folder, dtype, config.variant)
    check_tensors(model, folder, config.variant)
    try:
        weights = FileWeights(weight_files(folder, config.variant))
        _fill_buffers(model, weights, dtype)
        _keep_precise(model)
        return Offloaded(model, weights, device)
    except QuantizationError as error:
        raise PipelineError(f"{folder} cannot be offloaded: {one_line(error)}; set model.offload=none") from error


def _is_precise(model: nn.Module, name: str) -> bool:
    # The class keeps some tensors in float32, as in from_pretrained.
    return bool(set(getattr(model, "_keep_in_fp32_modules", None) or ()) & set(name.split(".")))


def _fill_buffers(model: nn.Module, weights: FileWeights, dtype: torch.dtype) -> None:
    stored = [name for name, _ in model.named_buffers() if name in weights]
    for name, tensor in weights(stored).items():
        owner, _, key = name.rpartition(".")
        wanted = torch.float32 if _is_precise(model, name) else dtype
        model.get_submodule(owner)._buffers[key] = tensor.to(wanted) if tensor.is_floating_point() else tensor


def _keep_precise(model: nn.Module) -> None:
    for name, parameter in list(model.named_parameters()):
        if _is_precise(model, name):
            owner, _, key = name.rpartition(".")
            empty = torch.empty_like(parameter, dtype=torch.float32)
            model.get_submodule(owner)._parameters[key] = nn.Parameter(empty, requires_grad=False)


def quantize_from_disk(
    config: ModelConfig,
    directory: Path,
    method: Method,
    batches: Iterable[Any],
    label: str,
    segments: Mapping[str, Segments] | None = None,
    keep: Keeper | None = None,
) -> tuple[nn.Module, Outcome]:
    """The quantized denoiser, in main memory, and its outcome; one block's float weights at a time."""
    with progress_bar(label) as progress:
        offloaded = offloaded_denoiser(config, directory)
        part = None if keep is None else keep.within("blocks")
        outcome = quantize_offloaded_with_outcome_(offloaded, method, batches, segments, progress=progress, keep=part)
        return drop_cached_weights_(offloaded.model).to("cpu"), outcome


def load_offloaded(config: ModelConfig, directory: Path, folder: Path) -> nn.Module:
    """A stored quantized denoiser, without float weights."""
    kind, source = denoiser_class(config, directory)
    model = empty_module(kind, source, getattr(torch, config.dtype), config.variant)
    return drop_cached_weights_(segquant.load_quantized(folder, model))


def drop_cached_weights_(model: nn.Module) -> nn.Module:
    """Quantized layers make float weights anew at every call: slower, one layer's memory."""
    for module in model.modules():
        if isinstance(module, segquant.QuantLinear):
            module.keep_packed = False
            module.forget_packed()
    return model
