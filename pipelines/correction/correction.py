"""Corrections of a quantized denoiser's prediction: scale · prediction + shift per timestep, channel or block.

Predictions come after guidance: [n, channels, …], or [n, tokens, channels] as in FLUX.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from segquant.files import write_tensors
from segquant_bench.pipelines.config.sections import CorrectionConfig
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.runtime.reading import reading

SCHEMA = 1


@dataclass(frozen=True)
class StepFit:
    """The fit at one timestep; grid axes may be 1.

    Attributes:
        scale: float64 [channels or 1, *grid].
        shift: float64 [channels or 1, *grid].
        variance: float64 [channels] of the remaining error, or None.
    """

    scale: Tensor
    shift: Tensor
    variance: Tensor | None = None


@dataclass(frozen=True)
class Correction:
    """A fitted correction.

    Attributes:
        method: "ptqd", "tac" or "affine".
        timesteps: of the scheduler's calls in order, which may repeat.
        scale: float32 [calls, channels or 1, *grid].
        shift: float32 [calls, channels or 1, *grid].
        variance: float32 [calls, channels] or None.
        input_bias: float32 [calls, channels], added to the latents after the call, or None.
        record: of the fit, JSON types.
    """

    method: str
    timesteps: tuple[float, ...]
    scale: Tensor
    shift: Tensor
    variance: Tensor | None = None
    input_bias: Tensor | None = None
    record: dict[str, Any] = field(default_factory=dict)

    def nearest(self, timestep: float, repeat: int) -> tuple[int, bool]:
        """The `repeat`-th call nearest to `timestep`, and whether it is exact."""
        distance = min(abs(known - timestep) for known in self.timesteps)
        calls = [call for call, known in enumerate(self.timesteps) if abs(known - timestep) == distance]
        return calls[min(repeat, len(calls) - 1)], distance <= 1e-4 * max(1.0, abs(timestep))

    def step(self, call: int) -> StepFit:
        return StepFit(self.scale[call], self.shift[call], None if self.variance is None else self.variance[call])


def channels_second(values: Tensor) -> Tensor:
    return values.movedim(-1, 1) if values.ndim == 3 else values


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """[channels] shaped to multiply `like`."""
    return values if like.ndim <= 3 else values.reshape(-1, *(1,) * (like.ndim - 2))


def channel_mean(values: Tensor) -> Tensor:
    """Mean of each channel: float64 [channels]."""
    return channels_second(values).double().transpose(0, 1).flatten(1).mean(1)


def fit_ptqd(quantized: Tensor, exact: Tensor) -> StepFit:
    """PTQD (2305.10657, section 4): error = k · exact + rest, with the rest's mean and variance per channel.

    k is the least-squares slope over values centred per channel, at least 0 as in the published code. The correction is
    (quantized - mean) / (1 + k).
    """
    q, f = (channels_second(x).double() for x in (quantized, exact))
    axes = (0, *range(2, q.ndim))
    error, centred = q - f, f - f.mean(axes, keepdim=True)
    power = centred.square().sum()
    k = ((error * centred).sum() / power).clamp_min(0) if power > 0 else torch.zeros_like(power)
    rest = error - k * f
    scale = (1 / (1 + k)).expand(q.shape[1])
    grid = (q.shape[1], *(1,) * (q.ndim - 2))
    variance = rest.var(axes, correction=0) * scale.square()
    return StepFit(scale.reshape(grid).clone(), (-rest.mean(axes) * scale).reshape(grid), variance)


def fit_tac(quantized: Tensor, exact: Tensor, clip: float) -> StepFit:
    """TAC-Diffusion's noise estimation reconstruction (2407.03917): a factor per channel, within 1 ± clip."""
    q, f = (channels_second(x).double().transpose(0, 1).flatten(1) for x in (quantized, exact))
    power = q.square().sum(1)
    factor = torch.where(power > 0, (q * f).sum(1) / power.clamp_min(torch.finfo(power.dtype).tiny), 1.0)
    scale = factor.clamp(1 - clip, 1 + clip).reshape(-1, *(1,) * (channels_second(exact).ndim - 2))
    return StepFit(scale, torch.zeros_like(scale))


def fit_affine(quantized: Tensor, exact: Tensor, grid: int, ridge: float) -> StepFit:
    """Scale and shift per spatial block, by ridge regression towards (1, 0).

    Minimises mean((scale·q + shift - f)²) + ridge·(m·(scale-1)² + shift²), m the block's mean of q². `grid` blocks per
    spatial axis, fewer on a short one; of packed latents, runs of tokens.
    """
    q, f = (channels_second(x).double() for x in (quantized, exact))
    residual = f - q
    mean_q, mean_r, mean_qq, mean_qr = (_block_mean(x, grid) for x in (q, residual, q * q, q * residual))
    weight = 1 + ridge
    determinant = weight**2 * mean_qq - mean_q.square()
    solvable = determinant > 1e-12 * mean_qq  # without ridge a constant block has no slope of its own
    divisor = torch.where(solvable, determinant, 1.0)
    slope = torch.where(solvable, (weight * mean_qr - mean_q * mean_r) / divisor, 0.0)
    shift = (mean_r - mean_q * slope) / weight
    return StepFit((1 + slope)[None], shift[None])


def fit_step(config: CorrectionConfig, quantized: Tensor, exact: Tensor) -> StepFit:
    """The fit of `config.method` at one timestep, both predictions on the same inputs."""
    if config.method == "ptqd":
        fit = fit_ptqd(quantized, exact)
        return fit if config.variance else StepFit(fit.scale, fit.shift)
    if config.method == "tac":
        return fit_tac(quantized, exact, config.clip)
    if config.method == "affine":
        return fit_affine(quantized, exact, config.grid, config.ridge)
    raise PipelineError(f"correction.method={config.method!r} corrects nothing; choose ptqd, tac or affine")


def correct(prediction: Tensor, fit: StepFit) -> Tensor:
    """scale · prediction + shift, in at least float32; returns the prediction's dtype."""
    values = channels_second(prediction)
    exact = values if values.dtype == torch.float64 else values.float()
    scale, shift = (_spread(x.to(exact), exact.shape[2:]) for x in (fit.scale, fit.shift))
    result = (exact * scale + shift).to(prediction.dtype)
    return result.movedim(1, -1) if prediction.ndim == 3 else result


def _places(size: int, blocks: int, device: torch.device) -> Tensor:
    return torch.arange(size, device=device) * blocks // size


def _spread(values: Tensor, spatial: Sequence[int]) -> Tensor:
    """[c, *grid] -> [c, *spatial]."""
    for axis, size in enumerate(spatial, start=1):
        values = values.index_select(axis, _places(size, values.shape[axis], values.device))
    return values


def _block_mean(values: Tensor, grid: int) -> Tensor:
    """[n, c, *spatial] -> [*grid]."""
    means = values.mean((0, 1))
    for axis, size in enumerate(values.shape[2:]):
        blocks = min(grid, size)
        places = _places(size, blocks, values.device)
        shape = [*means.shape]
        shape[axis] = blocks
        sums = means.new_zeros(shape).index_add(axis, places, means)
        counts = torch.bincount(places, minlength=blocks).to(means)
        means = sums / counts.reshape(-1, *(1,) * (means.ndim - axis - 1))
    return means


def save_correction(correction: Correction, folder: Path) -> None:
    tensors = {"scale": correction.scale, "shift": correction.shift}
    optional = {"variance": correction.variance, "input_bias": correction.input_bias}
    tensors |= {name: value for name, value in optional.items() if value is not None}
    write_tensors(folder / "correction.safetensors", {name: value.contiguous() for name, value in tensors.items()})
    head = {"schema": SCHEMA, "method": correction.method, "timesteps": correction.timesteps}
    text = json.dumps({**head, "record": correction.record}, indent=1, allow_nan=False)
    (folder / "correction.json").write_text(text + "\n", encoding="utf-8")


def load_correction(folder: Path) -> Correction:
    """Inverse of `save_correction`.

    Raises:
        PipelineError: another schema, or damaged.
    """
    with reading("the correction", folder):
        head = json.loads((folder / "correction.json").read_text(encoding="utf-8"))
        if head["schema"] != SCHEMA:
            raise PipelineError(f"{folder} holds a correction of schema {head['schema']}, this version reads {SCHEMA}")
        tensors = load_file(folder / "correction.safetensors")
        steps = tuple(map(float, head["timesteps"]))
        lengths = {name: len(tensor) for name, tensor in tensors.items()}
        if set(lengths.values()) != {len(steps)}:
            raise ValueError(f"it is of {len(steps)} steps, and its tensors of {lengths}")
        return Correction(str(head["method"]), steps, record=dict(head["record"]), **tensors)
