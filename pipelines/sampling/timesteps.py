"""Which timesteps calibration sees."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from segquant_bench.pipelines.config.sections import CalibrationConfig
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.runtime.own_code import TARGET
from segquant_bench.pipelines.sampling.own_timesteps import own_weights

if TYPE_CHECKING:
    import torch

    from segquant_bench.pipelines.sampling.samples import Sample


def depends(config: CalibrationConfig, precision: str, total: int) -> dict[str, Any]:
    """What drawn steps depend on besides seed, prompts and number (JSON types), a user's function by its weights."""
    if isinstance(config.timesteps, Mapping):
        return {"rule": "own", "weights": own_weights(config.timesteps, total, config.seed).tolist()}
    own: dict[str, dict[str, Any]] = {
        "normal": {"mean": config.mean, "std": config.std},
        "loss": {"pilot": config.pilot, "precision": precision, "batch_size": config.batch_size},
    }
    return {"rule": config.timesteps, **own.get(config.timesteps, {})}


def normal_weights(total: int, mean: float, std: float) -> np.ndarray:
    """PTQ4DM's clipped normal (2211.15736, "normally distributed time-step calibration"): float64 [total], sum 1.

    t ~ N(mean, std), clipped to [0, 1], 0 the clean picture. Step i has the times between 1 - (i+1)/total and
    1 - i/total, the outer steps also what is clipped; step 0 is the noisiest.
    """
    edges = (np.linspace(1.0, 0.0, total + 1) - mean) / std
    below = np.array([0.5 * math.erfc(-edge / math.sqrt(2.0)) for edge in edges])
    below[0], below[-1] = 1.0, 0.0
    shares: np.ndarray = below[:-1] - below[1:]
    return shares


def rounding_loss(
    denoiser: torch.nn.Module, samples: Sequence[Sample], precision: str, total: int, *, batch_size: int, device: str
) -> np.ndarray:
    """The round-to-nearest model's relative squared output error at each step, calibrated on `samples`.

    A step's loss is Σ|Q(x) - F(x)|² / Σ|F(x)|² over its samples.

    Returns:
        float64 [total].

    Raises:
        PipelineError: a step has no samples, or rounding changes nothing.
    """
    import segquant  # put off: slow, and a finished run needs none of it
    from segquant_bench.pipelines.sampling.samples import Batches

    rounded = copy.deepcopy(denoiser)
    segquant.quantize_(rounded, segquant.presets.rtn(precision=precision), Batches(samples, batch_size, device))
    losses = np.zeros(total)
    for step in range(total):
        own = [sample for sample in samples if sample.step == step]
        if not own:
            raise PipelineError(f"no denoiser input at step {step} was collected; use calibration.timesteps=uniform")
        losses[step] = segquant.output_error(denoiser, rounded, Batches(own, batch_size, device)) ** 2
    if not losses.any():
        raise PipelineError(f"rounding to {precision} changes no prediction, so no step is harder than another")
    return losses


def inclusion_probabilities(weights: np.ndarray, count: int) -> np.ndarray:
    """How likely each step is among `count` different ones, in proportion to `weights`: float64 [total], sum `count`.

    Steps that would exceed 1 are always taken.

    Raises:
        PipelineError: fewer than `count` steps have a positive weight.
    """
    if np.count_nonzero(weights) < count:
        raise PipelineError(
            f"calibration.steps_per_prompt={count} is more than the {np.count_nonzero(weights)} steps that "
            "calibration.timesteps can draw; lower it"
        )
    certain = np.zeros(len(weights), dtype=bool)
    while True:
        rest = np.where(certain, 0.0, weights)
        left = count - int(certain.sum())
        chance = np.where(certain, 1.0, left * rest / max(rest.sum(), np.finfo(float).tiny))
        above = ~certain & (chance >= 1.0)
        if not above.any():
            return chance
        certain |= above


def check_count(config: CalibrationConfig, total: int) -> None:
    """PipelineError for more steps of a prompt than there are."""
    count = config.steps_per_prompt
    if count is not None and count > total:
        raise PipelineError(
            f"calibration.steps_per_prompt={count} is more than the {total} steps of the schedule; lower it, or set "
            "calibration.steps_per_prompt=null, which takes all"
        )


def draw_steps(
    total: int, count: int | None, seed: int, stream: int, prompt: int, weights: np.ndarray | None = None
) -> frozenset[int]:
    """`count` different steps of 0 … total-1 for one prompt; None takes all.

    Without weights all are alike (Q-Diffusion, 2302.04304). With weights the draw is systematic: steps in random
    order, each as long as its inclusion probability, one per unit of length.

    Args:
        seed: with `stream` and `prompt`.
        stream: keeps calibration and held-out draws apart.
        weights: float64 [total], not negative, or None.

    Raises:
        PipelineError: there are too few steps.
    """
    if count is None:
        return frozenset(range(total))
    if count > total:
        raise PipelineError(
            f"calibration.steps_per_prompt={count} is more than the {total} steps of the schedule; lower it, or set "
            "calibration.steps_per_prompt=null, which takes all"
        )
    generator = np.random.default_rng([seed, stream, prompt])
    if weights is None:
        return frozenset(generator.choice(total, size=count, replace=False).tolist())
    order = generator.permutation(total)
    ends = np.cumsum(inclusion_probabilities(weights, count)[order])
    ends[-1] = count  # rounding errors of the sum
    places = generator.random() + np.arange(count)
    return frozenset(order[np.searchsorted(ends, places, side="right")].tolist())


def describe(config: CalibrationConfig, weights: np.ndarray | None, total: int) -> dict[str, Any]:
    """Every step's inclusion probability, for the record (JSON types)."""
    count = config.steps_per_prompt
    if count is None:
        chances = np.ones(total)
    else:
        chances = inclusion_probabilities(np.ones(total) if weights is None else weights, count)
    rule = config.timesteps[TARGET] if isinstance(config.timesteps, Mapping) else config.timesteps
    return {"timesteps": rule, "inclusion_probabilities": [round(float(chance), 6) for chance in chances]}
