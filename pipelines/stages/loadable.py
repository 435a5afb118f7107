"""What would fail when the pipeline is loaded is refused before anything is computed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segquant_bench.hints import nearest
from segquant_bench.pipelines.config.sections import ModelConfig
from segquant_bench.pipelines.data.control import KINDS
from segquant_bench.pipelines.errors import PipelineError, one_of
from segquant_bench.pipelines.loading.call_inputs import check_components, check_takes
from segquant_bench.pipelines.loading.code_names import check_names
from segquant_bench.pipelines.loading.files import components, read_index, resolve_part, weight_files
from segquant_bench.pipelines.loading.models import (
    check_call,
    denoiser_in_index,
    diffusers_class,
    named_class,
    scheduler_class,
)
from segquant_bench.pipelines.runtime.cache import find_finished
from segquant_bench.pipelines.stages.reference import REFERENCE
from segquant_bench.pipelines.stages.run import Run


def check_loadable(run: Run) -> None:
    """Look at classes and names alone; a run whose pictures are there has loaded its pipeline before.

    Raises:
        PipelineError: no such class, control, variant or denoiser, or an argument that the pipeline does not take.
    """
    model = run.config.model
    if model.control is not None:
        one_of("model.control", model.control, KINDS)
    if find_finished(REFERENCE.name, run.cache, run.record(REFERENCE.name)) is not None:
        return
    index = read_index(run.directory)
    check_names(model, run.directory, index)
    denoiser_in_index({**index, **{name: [part.kind, part.kind] for name, part in model.parts.items()}}, model.denoiser)
    for name, part in model.parts.items():
        named_class(part.kind, f"model.parts.{name}.kind", "ModelMixin")
    _check_pipeline(model, run.directory, index)
    _check_scheduler(model, index)
    _check_variant(model, run.directory, index)
    _check_size(model, run.directory, index)


def _pipeline_class(model: ModelConfig, index: Mapping[str, Any]) -> Any:
    if model.pipeline is not None:
        return named_class(model.pipeline, "model.pipeline", "DiffusionPipeline")
    return diffusers_class(str(index["_class_name"]), "the class in model_index.json")


def _check_pipeline(model: ModelConfig, directory: Path, index: Mapping[str, Any]) -> None:
    kind = _pipeline_class(model, index)
    asked = f"model.pipeline={model.pipeline}" if model.pipeline else f"{kind.__name__} ({directory})"
    check_call(kind, model)
    check_takes(kind, asked, model.call.arguments(), control=model.control is not None)
    if model.pipeline is None or kind.__name__ == index["_class_name"]:
        return  # the folder's own, whose components are looked at one by one
    import diffusers  # seconds; put off until a model is loaded

    found = {name: getattr(diffusers, str(own), None) for name, own in components(index)}
    for name, part in model.parts.items():
        found[name] = named_class(part.kind, f"model.parts.{name}.kind", "ModelMixin")
    check_components(kind, asked, found)


def _check_scheduler(model: ModelConfig, index: Mapping[str, Any]) -> None:
    kinds = {name: kind for name, kind in components(index) if kind is not None}
    if model.scheduler is None and not (model.scheduler_settings and "scheduler" in kinds):
        return
    scheduler_class(model, None if model.scheduler else diffusers_class(kinds["scheduler"], "the scheduler's class"))


def _check_variant(model: ModelConfig, directory: Path, index: Mapping[str, Any]) -> None:
    if model.variant is None:
        return
    folders = [directory / name for name, kind in components(index) if kind is not None]
    files = [file for folder in folders if folder.is_dir() for file in folder.glob("*.safetensors")]
    if not any(f".{model.variant}." in file.name for file in files):
        known = {file.name.split(".")[1] for file in files if file.name.count(".") == 2}
        told = nearest(model.variant, known) if known else "it has weights without a variant alone"
        raise PipelineError(f"model.variant={model.variant}: {directory} has no file of that variant; {told}")
    for folder in folders:
        weight_files(folder, model.variant)


def _check_size(model: ModelConfig, directory: Path, index: Mapping[str, Any]) -> None:
    """Pictures are whole patches of latents, which the autoencoder has at half the size for every level but one."""
    denoiser = denoiser_in_index(index, model.denoiser) if not model.parts else (model.denoiser or "transformer")
    vae, body = _settings(directory / "vae"), _settings(directory / denoiser)
    levels = vae.get("block_out_channels") or vae.get("encoder_block_out_channels")
    patch = body.get("patch_size")
    if not isinstance(levels, list) or not 0 < len(levels) < 10:
        return
    step = 2 ** (len(levels) - 1) * (patch if isinstance(patch, int) and 0 < patch <= 64 else 1)
    bodies = [body, *(_settings(resolve_part(name, part)) for name, part in model.parts.items())]
    places = [most for each in bodies if isinstance(most := each.get("pos_embed_max_size"), int) and most > 0]
    for key in ("height", "width"):
        size = getattr(model.call, key)
        if size % step:
            raise PipelineError(
                f"model.call.{key}={size} is no multiple of {step} pixels, which is what the autoencoder and the "
                f"denoiser of {directory} make; give {max(step, size // step * step)}"
            )
        if places and size > min(places) * step:
            raise PipelineError(
                f"model.call.{key}={size} is more than the {min(places) * step} pixels that the denoiser of "
                f"{directory} has places for (pos_embed_max_size {min(places)}); give at most that"
            )


def _settings(folder: Path) -> dict[str, Any]:
    """A component's config.json; empty if there is none that can be read, which loading tells."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
