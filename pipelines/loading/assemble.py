from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from segquant_bench.pipelines.config.sections import ModelConfig
from segquant_bench.pipelines.loading.blocks import empty_module, offloaded_denoiser
from segquant_bench.pipelines.loading.components import pin_device
from segquant_bench.pipelines.loading.embeddings import Embeddings, encode_prompts
from segquant_bench.pipelines.loading.files import read_index, resolve_part
from segquant_bench.pipelines.loading.models import (
    denoiser_in_index,
    diffusers_class,
    load_pipeline,
    named_class,
    resolve_device,
    text_components,
)


def write_embeddings(config: ModelConfig, directory: Path, prompts: Sequence[str], folder: Path) -> None:
    """Encode `prompts` with the text encoders alone, into the new `folder` (see `embeddings.encode_prompts`)."""
    given = _empty_components(config, directory)
    pipeline = load_pipeline(config, directory, given)
    pin_device(pipeline, resolve_device(config.device))
    encode_prompts(pipeline, prompts, config.call.arguments(), folder)


def _empty_components(config: ModelConfig, directory: Path) -> dict[str, Any]:
    dtype = getattr(torch, config.dtype)
    empty: dict[str, Any] = {}
    for name, entry in read_index(directory).items():
        folder = directory / name
        if isinstance(entry, list) and entry[0] == "diffusers" and (folder / "config.json").is_file():
            empty[name] = empty_module(diffusers_class(entry[1], f"the class of {name}"), folder, dtype, config.variant)
    for name, part in config.parts.items():
        kind = named_class(part.kind, f"model.parts.{name}.kind", "ModelMixin")
        empty[name] = empty_module(kind, resolve_part(name, part), dtype, part.variant)
    return empty


def assemble(config: ModelConfig, directory: Path, embeddings: Path | None) -> Any:
    """The unquantized pipeline, ready to sample.

    Args:
        embeddings: from `write_embeddings`; None loads the text encoders.

    Raises:
        PipelineError: as `load_pipeline`; a denoiser that cannot be offloaded.
    """
    index = read_index(directory)
    given: dict[str, Any] = {}
    if embeddings is not None:
        given |= text_components(index)
    if config.offload == "blocks":
        given[denoiser_in_index(index, config.denoiser)] = offloaded_denoiser(config, directory).model
    pipeline = load_pipeline(config, directory, given)
    if config.offload == "blocks":
        pin_device(pipeline, resolve_device(config.device))
    if embeddings is not None:
        Embeddings(embeddings).use(pipeline)
    return pipeline
