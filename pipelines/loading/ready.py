"""Settings of a loaded pipeline's components that do not go together, and would be met after work."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from segquant_bench.pipelines.errors import PipelineError, one_line

RESTORE = "restore the file, or take another folder"
LEGACY = 2
"""`eos_token_id` of CLIP's first configurations, which says: the token of the highest number."""
SHIFTED = ("StableDiffusion3", "Flux")
"""How pipelines are called that add the decoder's `shift_factor`, whatever it is."""
STEPS = 8
"""Steps that a schedule is tried with where the call says nothing."""


def check_ready(pipeline: Any, directory: Path, steps: int | None) -> None:
    """Refuse what would fail while pictures are made, or make others, of what files say of components.

    Raises:
        PipelineError: with file and field.
    """
    for name, tokenizer, encoder in _texts(pipeline):
        _check_tokenizer(tokenizer, directory / name)
        if encoder is not None:
            _check_clip(tokenizer, encoder, directory / name, directory / name.replace("tokenizer", "text_encoder"))
    _check_shift(pipeline, directory / "vae" / "config.json")
    if getattr(pipeline, "scheduler", None) is not None:
        check_schedule(pipeline.scheduler, directory / "scheduler" / "scheduler_config.json", steps or STEPS)


def _texts(pipeline: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name, tokenizer, and its text encoder if that is there."""
    parts = pipeline.components
    for name, part in parts.items():
        if name.startswith("tokenizer") and hasattr(part, "model_max_length"):
            yield name, part, parts.get(name.replace("tokenizer", "text_encoder"))


def _check_tokenizer(tokenizer: Any, folder: Path) -> None:
    if tokenizer.pad_token is None:
        raise PipelineError(f"{folder / 'tokenizer_config.json'} names no pad_token; {RESTORE}")


def _check_clip(tokenizer: Any, encoder: Any, folder: Path, source: Path) -> None:
    """CLIP's texts have the length that their tokenizer says, and are told by the place of their last token."""
    if not type(encoder).__name__.startswith("CLIPText"):
        return
    longest, given = encoder.config.max_position_embeddings, tokenizer.model_max_length
    if given > longest:
        raise PipelineError(
            f"{folder / 'tokenizer_config.json'} has no model_max_length, or {given}, and {source / 'config.json'} "
            f"takes texts of {longest} tokens (max_position_embeddings); {RESTORE}"
        )
    end = encoder.config.eos_token_id
    if end not in (LEGACY, tokenizer.eos_token_id):
        raise PipelineError(
            f"{source / 'config.json'} has no eos_token_id, or {one_line(str(end))}, which is not the "
            f"{tokenizer.eos_token_id} of {folder}; {RESTORE}"
        )


def _check_shift(pipeline: Any, file: Path) -> None:
    config = getattr(getattr(pipeline, "vae", None), "config", None)
    if type(pipeline).__name__.startswith(SHIFTED) and config is not None:
        found = config.get("shift_factor")
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise PipelineError(
                f"{file} has no number as its shift_factor, which {type(pipeline).__name__} adds; {RESTORE}"
            )


def check_schedule(scheduler: Any, file: Path, steps: int) -> None:
    """Let one of diffusers' usual schedulers take its steps on a latent of four numbers.

    Raises:
        PipelineError: it cannot, or makes numbers that are none.
    """
    if not _is_usual(type(scheduler)):
        return
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            why = _tried(copy.deepcopy(scheduler), steps)
        except Exception as error:  # whatever it makes of settings that nobody tried
            why = f"{type(error).__name__}: {one_line(error)}"
    if why:
        raise PipelineError(
            f"{type(scheduler).__name__} cannot take {steps} steps with the settings of {file} ({why[:200]}); "
            "restore the file, or set what is wrong by model.scheduler_settings"
        )


def _is_usual(kind: type) -> bool:
    from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers  # put off: slow

    names = {*KarrasDiffusionSchedulers.__members__, "FlowMatchEulerDiscreteScheduler"} - {"DPMSolverSDEScheduler"}
    return kind.__module__.startswith("diffusers.") and kind.__name__ in names


def _tried(scheduler: Any, steps: int) -> str:
    """What is wrong with its steps; "" if nothing."""
    config, more = scheduler.config, {}
    if config.get("use_dynamic_shifting") and "mu" in inspect.signature(scheduler.set_timesteps).parameters:
        more["mu"] = (config.get("base_shift", 0.5) + config.get("max_shift", 1.15)) / 2
    scheduler.set_timesteps(steps, **more)
    sample = torch.full((1, 1, 2, 2), 0.5)
    for time in scheduler.timesteps:
        given = scheduler.scale_model_input(sample, time) if hasattr(scheduler, "scale_model_input") else sample
        sample = scheduler.step(0.5 * given, time, sample).prev_sample
        if not bool(torch.isfinite(sample).all()):
            return f"at time {float(time):g} its latents are not finite"
    return ""
