"""What the numbers of a configuration may be: no run that makes sense is outside."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from segquant_bench.pipelines.errors import PipelineError, at_least, one_line

_MANY, _BATCH = 1_000_000, 65_536
_SIDE = 65_536
_ROWS = 4096

BOUNDS: dict[str, tuple[int, int] | tuple[float, float]] = {
    "model.batch_size": (1, _BATCH),
    "model.call.num_inference_steps": (1, _MANY),  # beyond them memory ends before the work does
    "model.call.guidance_scale": (0.0, 1000.0),
    "model.call.height": (8, _SIDE),
    "model.call.width": (8, _SIDE),
    "model.call.max_sequence_length": (0, _MANY),
    "model.call.true_cfg_scale": (0.0, 1000.0),
    "model.call.controlnet_conditioning_scale": (-1000.0, 1000.0),
    "dataset.size": (1, 1_000_000_000),
    "calibration.prompts": (1, _MANY),
    "calibration.held_out": (1, _MANY),
    "calibration.steps_per_prompt": (1, _MANY),
    "calibration.mean": (0.0, 1.0),
    "calibration.std": (1e-6, 1000.0),
    "calibration.pilot": (1, _MANY),
    "calibration.batch_size": (1, _BATCH),
    "correction.prompts": (1, _MANY),
    "correction.clip": (0.0, 1.0),
    "correction.grid": (1, _ROWS),  # as many as the latents of the largest pictures are long
    "correction.ridge": (0.0, 1e6),
    "precision.weight.bits": (2, 8),
    "precision.weight.group_size": (1, _MANY),
    "precision.input.bits": (2, 8),
    "precision.input.group_size": (1, _MANY),
    "metric.bootstrap": (1, _MANY),
    "metric.backends.candidates": (2, _MANY),
    "metric.backends.batch_size": (1, _BATCH),
    "logger.images": (0, _MANY),
    "generate.processes": (1, 1024),
    "retries": (0, 1000),  # what has not mended by then does not
    "prune_above": (0.0, 1e30),
    "hydra.sweeper.max_batch_size": (1, _MANY),
    "hydra.sweeper.n_trials": (1, _MANY),
    "hydra.sweeper.n_jobs": (1, 10_000),
    "hydra.sweeper.warm_up": (1, _MANY),
    "hydra.sweeper.prune": (1.0, 1e6),
    "hydra.launcher.parallel": (1, 10_000),
    "hydra.launcher.cpus": (0.0, 10_000.0),
    "hydra.launcher.gpus": (0.0, 10_000.0),
    "stages.speed.repeats": (1, 10_000),  # rounds of one kind, each of seconds
    "stages.speed.warmup": (1, 10_000),
}
"""Least and most by key; of whole numbers where both are whole. Seeds have a rule of their own in `config.values`."""


def check_bounds(section: Any, prefix: str) -> None:
    """Of a section's dataclass; what is null has none.

    Raises:
        PipelineError: with the key of the first value that is out of range.
    """
    for item in fields(section):
        key, value = f"{prefix}{item.name}", getattr(section, item.name)
        if key in BOUNDS and value is not None:
            within(key, value)


def within(key: str, value: Any) -> None:
    """PipelineError for a value of a key that is no number, or out of its range."""
    least, most = BOUNDS[key]
    whole = isinstance(least, int)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        wanted = "whole number" if whole else "number"
        told = one_line(repr(value))[:60]
        raise PipelineError(f"{key}={told} is no {wanted}; give one from {least:.12g} to {most:.12g}")
    at_least(key, value, least, most)
