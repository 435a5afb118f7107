"""What a pipeline makes of its denoiser's outputs before the scheduler gets them: guidance, found by looking."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from segquant_bench.pipelines.sampling.first_step import Seen, ended
from segquant_bench.pipelines.sampling.generate import PromptInputs, first_tensor, run_batches


def guidance_weights(
    pipeline: Any,
    denoiser: torch.nn.Module,
    prompts: Sequence[str],
    call: Mapping[str, Any],
    *,
    seed: int,
    inputs: PromptInputs | None = None,
) -> list[float] | None:
    """By which rows of a prompt the scheduler's prediction is their sum: of guidance by 4, −3 and 4.

    None: a row a prompt, rows of several calls, or no weighted sum (guidance that is rescaled).

    Args:
        prompts: one at least; the first is sampled, for a step.
    """
    outputs: list[Tensor] = []
    predictions: list[Tensor] = []

    def see(model_output: Tensor, *_: Any, **__: Any) -> None:
        predictions.append(model_output)

    if not hasattr(getattr(pipeline, "scheduler", None), "step"):
        return None
    handle = denoiser.register_forward_hook(lambda _, __, output: outputs.append(first_tensor(output)))
    batches = run_batches(
        pipeline, denoiser, prompts[:1], call, seed=seed, stream=0, batch_size=1, output_type="latent",
        label="guidance", inputs=inputs,
    )  # fmt: skip
    try:
        with ended(pipeline.scheduler, see), contextlib.suppress(Seen):
            next(batches)
    finally:
        batches.close()  # type: ignore[attr-defined]  # a generator
        handle.remove()
    if len(outputs) != 1 or not predictions or len(outputs[0]) < 2:
        return None
    (prediction,) = predictions
    rows = [row[:, : prediction.shape[1]] for row in outputs[0].split(1)]
    return branch_weights([row for row in rows if row.shape == prediction.shape], prediction)


def branch_weights(branches: Sequence[Tensor], prediction: Tensor) -> list[float] | None:
    """Weights by which the branches add up to the prediction, by least squares; None where they do not."""
    if not branches:
        return None
    target = prediction.double().flatten()
    outputs = torch.stack([branch.double().flatten() for branch in branches])
    weights = torch.linalg.pinv(outputs @ outputs.T, rcond=1e-13, hermitian=True) @ (outputs @ target)
    tolerance = 1e-3 if prediction.dtype in (torch.float32, torch.float64) else 3e-2
    found: list[float] = weights.tolist()
    return found if (weights @ outputs - target).norm() <= tolerance * target.norm() else None


def weighted(weights: Sequence[float]) -> Callable[[Tensor], Tensor]:
    """The sum of a sample's rows, which lie together in a batch (see `Batches`), by their weights."""

    def combine(output: Tensor) -> Tensor:
        by_sample = output.unflatten(0, (-1, len(weights)))
        scales = torch.tensor(weights, dtype=output.dtype, device=output.device)
        found: Tensor = torch.tensordot(scales, by_sample, dims=([0], [1]))
        return found

    return combine
