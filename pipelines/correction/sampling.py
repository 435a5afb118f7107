"""Schedulers with corrected steps."""

from __future__ import annotations

import copy
import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from segquant_bench.pipelines.correction.correction import Correction, StepFit, correct, per_channel
from segquant_bench.pipelines.sampling.draws import NOISE, drawing, noise_names

log = logging.getLogger(__name__)

PROBE = 1e-3  # small enough that no scheduler clips it

Step = Callable[[Callable[..., Any], inspect.BoundArguments], Any]


@contextmanager
def step_replaced(scheduler: Any, step: Step) -> Iterator[None]:
    """`step(original, bound arguments)` stands for `scheduler.step`, with its signature."""
    original = scheduler.step
    signature = inspect.signature(original)

    @functools.wraps(original)
    def replaced(*args: Any, **kwargs: Any) -> Any:
        return step(original, signature.bind(*args, **kwargs))

    scheduler.step = replaced
    try:
        yield
    finally:
        del scheduler.step


@contextmanager
def corrected(scheduler: Any, correction: Correction | None) -> Iterator[None]:
    """Within the block every step is corrected; None corrects nothing."""
    if correction is None:
        yield
        return
    with step_replaced(scheduler, Corrector(scheduler, correction)):
        yield


class Corrector:
    def __init__(self, scheduler: Any, correction: Correction) -> None:
        self.scheduler, self.correction = scheduler, correction
        self._last: float | None = None
        self._repeat = 0
        self._told = False

    def __call__(self, original: Callable[..., Any], bound: inspect.BoundArguments) -> Any:
        call = self._call(float(bound.arguments["timestep"]))
        fit, bias = self.correction.step(call), self.correction.input_bias
        result, _ = corrected_step(self.scheduler, original, bound, fit)
        return result if bias is None else with_latents(result, lambda latents: add_per_channel(latents, bias[call]))

    def _call(self, timestep: float) -> int:
        self._repeat = self._repeat + 1 if timestep == self._last else 0
        self._last = timestep
        call, is_exact = self.correction.nearest(timestep, self._repeat)
        if not is_exact and not self._told:
            self._told = True
            log.warning(
                "correction %s was not fitted at timestep %g; the nearest fitted one is used, %g",
                self.correction.method, timestep, self.correction.timesteps[call],
            )  # fmt: skip
        return call


def corrected_step(
    scheduler: Any, original: Callable[..., Any], bound: inspect.BoundArguments, fit: StepFit
) -> tuple[Any, bool]:
    """One step with the prediction corrected, and less noise where the variance is known.

    Channels that the latents lack (a learned variance) stay.

    Returns:
        The step's result, and whether it adds noise that could be lessened.
    """
    prediction, latents = bound.arguments["model_output"], bound.arguments["sample"]
    width = latents.shape[1] if latents.ndim > 3 else prediction.shape[1]
    first = correct(prediction[:, :width], fit)
    noise = None if fit.variance is None else remaining_noise(scheduler, bound, fit.variance)
    bound.arguments["model_output"] = torch.cat([first, prediction[:, width:]], dim=1)
    if noise is None:
        return original(*bound.args, **bound.kwargs), False
    draw = noise_names(scheduler)[NOISE]

    def lessened(*args: Any, **kwargs: Any) -> Tensor:
        drawn = draw(*args, **kwargs)
        less: Tensor = drawn * per_channel(noise.to(drawn), drawn)
        return less

    with drawing(noise_names(scheduler), lessened):
        return original(*bound.args, **bound.kwargs), True


def remaining_noise(scheduler: Any, bound: inspect.BoundArguments, variance: Tensor) -> Tensor | None:
    """The factor on the scheduler's noise that makes room for the quantization noise.

    PTQD (2305.10657, variance schedule calibration): noise of variance s² becomes max(0, s² - c²·v), with v the
    prediction's error variance and c the step's factor on it. Two trial steps measure c and s.

    Returns:
        [channels] in [0, 1]; None where this step adds no noise.
    """
    if NOISE not in noise_names(scheduler):
        return None
    base = _trial(scheduler, bound, 0.0, 0.0)
    carried = (_trial(scheduler, bound, PROBE, 0.0) - base) / PROBE
    added = (_trial(scheduler, bound, 0.0, PROBE) - base) / PROBE
    if abs(added) < 1e-6:
        return None
    return (1 - (carried / added) ** 2 * variance).clamp_min(0.0).sqrt()


def _trial(scheduler: Any, bound: inspect.BoundArguments, prediction: float, noise: float) -> float:
    """Where a step takes zero latents, with constants for prediction and noise."""
    latents = torch.zeros_like(bound.arguments["sample"][:1], dtype=torch.float32)
    arguments = {
        **bound.arguments,
        "model_output": torch.full_like(latents, prediction),
        "sample": latents,
        "return_dict": False,
    }

    def constant(shape: Any, *args: Any, **kwargs: Any) -> Tensor:
        return torch.full(tuple(shape), noise, dtype=latents.dtype, device=latents.device)

    twin = copy.deepcopy(scheduler)
    with drawing(noise_names(scheduler), constant):
        return float(type(scheduler).step(twin, **arguments)[0].double().mean())


def add_per_channel(latents: Tensor, bias: Tensor) -> Tensor:
    """Latents plus a bias [channels], in the latents' dtype."""
    return (latents + per_channel(bias.to(latents.device, latents.dtype), latents)).to(latents.dtype)


def latents_of(result: Any) -> Tensor:
    latents: Tensor = result[0] if isinstance(result, tuple) else result.prev_sample
    return latents


def with_latents(result: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(result, tuple):
        return (change(result[0]), *result[1:])
    result.prev_sample = change(result.prev_sample)
    return result
