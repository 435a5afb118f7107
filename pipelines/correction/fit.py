"""Fit a correction along the trajectory of the corrected model.

At every step both denoisers see the same inputs, the pair is fitted, and the corrected prediction goes on (as in
TAC-Diffusion).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from segquant.keep import Keeper
from segquant_bench.pipelines.config.sections import CorrectionConfig
from segquant_bench.pipelines.correction.correction import Correction, StepFit, channel_mean, correct, fit_step
from segquant_bench.pipelines.correction.parts import in_parts
from segquant_bench.pipelines.correction.sampling import (
    add_per_channel,
    corrected_step,
    latents_of,
    step_replaced,
    with_latents,
)
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.sampling.generate import PromptInputs, run_batches
from segquant_bench.pipelines.sampling.guided import branch_weights
from segquant_bench.pipelines.sampling.shared_inputs import shared_inputs

TRAJECTORY = "of the quantized model, corrected at the steps before"


def fit_correction(
    pipeline: Any,
    name: str,
    quantized: torch.nn.Module,
    prompts: Sequence[str],
    call: Mapping[str, Any],
    config: CorrectionConfig,
    *,
    seed: int,
    stream: int,
    batch_size: int,
    inputs: PromptInputs | None = None,
    keep: Keeper | None = None,
) -> Correction:
    """Sample `prompts` with the quantized denoiser and fit its correction step by step.

    Args:
        pipeline: with the unquantized denoiser under `name`; it is put back.
        prompts: their latents go through the scheduler together.
        stream: keeps latents apart from evaluation's.
        batch_size: through the denoisers at once.
        inputs: further arguments by prompt index, such as control pictures.
        keep: has what the denoisers gave a run before, and takes what they give this one.

    Raises:
        PipelineError: no prompts, or as `exact_prediction`.
    """
    if not prompts:
        raise PipelineError("there are no calibration prompts to fit a correction on; set calibration.prompts")
    exact = pipeline.components[name]

    def sample(denoiser: torch.nn.Module, label: str) -> None:
        batches = run_batches(
            pipeline, denoiser, prompts, call, seed=seed, stream=stream, batch_size=len(prompts),
            output_type="latent", label=label, inputs=inputs,
        )  # fmt: skip
        for _ in batches:
            pass

    shared = shared_inputs(pipeline, exact, prompts, call, inputs)
    before, during = (None if keep is None else keep.within(part) for part in ("unquantized", "quantized"))
    wants_means = config.method == "tac" and config.input_bias
    means = MeanLatents()
    if wants_means:
        parts = in_parts(exact, batch_size, len(prompts), shared, keep=before)
        with parts, step_replaced(pipeline.scheduler, means):
            sample(exact, "correct (unquantized)")
    fitter = Fitter(pipeline.scheduler, config, means.values if wants_means else None)
    setattr(pipeline, name, quantized)
    try:
        paired = in_parts(
            quantized, batch_size, len(prompts), shared, beside=exact, on_pair=fitter.pairs.append, keep=during
        )
        with paired, step_replaced(pipeline.scheduler, fitter):
            sample(quantized, "correct")
    finally:
        setattr(pipeline, name, exact)
    return fitter.result(len(prompts))


class MeanLatents:
    """Channel means of the latents after each step."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []

    def __call__(self, original: Callable[..., Any], bound: inspect.BoundArguments) -> Any:
        result = original(*bound.args, **bound.kwargs)
        self.values.append(channel_mean(latents_of(result)).cpu())
        return result


class Fitter:
    """Fits at every step of a scheduler, and steps by the fit."""

    def __init__(self, scheduler: Any, config: CorrectionConfig, means: Sequence[Tensor] | None) -> None:
        self.scheduler, self.config, self.means = scheduler, config, means
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self.timesteps: list[float] = []
        self.fits: list[StepFit] = []
        self.biases: list[Tensor] = []
        self.errors: list[tuple[float, float]] = []
        self.noisy = 0
        self.weights: list[float] = []

    def __call__(self, original: Callable[..., Any], bound: inspect.BoundArguments) -> Any:
        prediction, latents = bound.arguments["model_output"], bound.arguments["sample"]
        exact, self.weights = exact_prediction(self.pairs, prediction, len(latents))
        self.pairs.clear()
        width = latents.shape[1] if latents.ndim > 3 else prediction.shape[1]
        own, exact = prediction[:, :width], exact[:, :width]
        fit = fit_step(self.config, own, exact)
        self.timesteps.append(float(bound.arguments["timestep"]))
        self.fits.append(fit)
        self.errors.append((_relative(own, exact), _relative(correct(own, fit), exact)))
        result, is_noisy = corrected_step(self.scheduler, original, bound, fit)
        self.noisy += is_noisy
        if self.means is None:
            return result
        bias = self.means[len(self.biases)] - channel_mean(latents_of(result)).cpu()
        self.biases.append(bias)
        return with_latents(result, lambda values: add_per_channel(values, bias))

    def result(self, prompts: int) -> Correction:
        variances = [fit.variance for fit in self.fits if fit.variance is not None]
        record = {
            "prompts": prompts,
            "trajectory": TRAJECTORY,
            "scheduler": type(self.scheduler).__name__,
            "guidance_weights": [round(weight, 4) for weight in self.weights],
            "prediction_error": [error for error, _ in self.errors],
            "prediction_error_corrected": [error for _, error in self.errors],
            "noise": self._noise(),
        }
        return Correction(
            self.config.method,
            tuple(self.timesteps),
            _stack([fit.scale for fit in self.fits]),
            _stack([fit.shift for fit in self.fits]),
            _stack(variances) if variances else None,
            _stack(self.biases) if self.biases else None,
            record,
        )

    def _noise(self) -> str:
        if self.config.method != "ptqd" or not self.config.variance:
            return "as the scheduler adds it"
        if not self.noisy:
            return "the scheduler adds none, only factor and mean are corrected"
        return f"variance of the quantization noise taken out at {self.noisy} of {len(self.fits)} steps"


def exact_prediction(
    pairs: Sequence[tuple[Tensor, Tensor]], prediction: Tensor, prompts: int
) -> tuple[Tensor, list[float]]:
    """What the unquantized denoiser would have given the scheduler.

    Branch weights are found by least squares on quantized outputs.

    Args:
        pairs: (quantized, exact) outputs of the step's denoiser calls, [branches · prompts, …].
        prediction: what the scheduler was given.
        prompts: rows of the latents.

    Returns:
        The exact prediction, and the weight of each branch.

    Raises:
        PipelineError: the prediction is no weighted sum of the outputs.
    """
    branches = [
        (q[:, : prediction.shape[1]], f[:, : prediction.shape[1]])
        for quantized, exact in pairs
        for q, f in zip(quantized.split(prompts), exact.split(prompts), strict=True)
    ]
    fitting = [pair for pair in branches if pair[0].shape == prediction.shape]
    weights = branch_weights([quantized for quantized, _ in fitting], prediction)
    if weights is not None:
        exact = sum(weight * f.double() for weight, (_, f) in zip(weights, fitting, strict=True))
        return exact.to(prediction.dtype), weights
    raise PipelineError(
        "this pipeline does not give its scheduler a weighted sum of the denoiser's outputs (is the guidance "
        "rescaled?), so no correction can be fitted; set correction=none"
    )


def _relative(values: Tensor, exact: Tensor) -> float:
    norm = float(exact.double().norm())
    return float((values.double() - exact.double()).norm()) / norm if norm > 0 else 0.0


def _stack(values: Sequence[Tensor]) -> Tensor:
    return torch.stack([value.float().cpu() for value in values])
