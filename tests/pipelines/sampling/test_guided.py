"""What a pipeline makes of its denoiser's rows is found by looking, whatever the order of guidance's halves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from segquant_bench.pipelines.sampling.guided import branch_weights, guidance_weights, weighted

CALL = {"num_inference_steps": 3}


class _Denoiser(nn.Module):
    """Other rows for every row, and channels of a variance beside those of the prediction."""

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
        rows = torch.arange(1.0, len(x) + 1, dtype=x.dtype).view(-1, 1, 1, 1)
        return (torch.cat((torch.sin(rows * x), torch.ones_like(x)), 1),)


class _Scheduler:
    steps = 0

    def step(self, model_output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        return sample - model_output


class _Pipeline:
    """`rows` of a prompt, or as many calls."""

    def __init__(self, rows: int, guide: Any, together: bool = True) -> None:
        self.denoiser, self.scheduler = _Denoiser(), _Scheduler()
        self.rows, self.guide, self.together = rows, guide, together

    def __call__(self, prompt: list[str], num_inference_steps: int, **_: Any) -> Any:
        x = torch.linspace(-1, 1, 48).view(1, 3, 4, 4)
        for step in range(num_inference_steps):
            time = torch.tensor(float(step))
            calls = [x.repeat(self.rows, 1, 1, 1)] if self.together else [x] * self.rows
            outputs = torch.cat([self.denoiser(call, timestep=time)[0] for call in calls])
            x = self.scheduler.step(self.guide(outputs[:, :3]), time, sample=x)
        return SimpleNamespace(images=x)


def _found(pipeline: _Pipeline) -> list[float] | None:
    found = guidance_weights(pipeline, pipeline.denoiser, ["a", "b"], CALL, seed=0)
    assert not pipeline.denoiser._forward_hooks and "step" not in vars(pipeline.scheduler)
    assert pipeline.scheduler.steps == 0, "the step was not taken"
    return found


def test_weights_of_guidance_in_either_order_and_of_three_rows() -> None:
    assert _found(_Pipeline(2, lambda v: v[:1] + 4 * (v[1:] - v[:1]))) == pytest.approx([-3, 4], abs=1e-4)
    assert _found(_Pipeline(2, lambda v: v[1:] + 1.5 * (v[:1] - v[1:]))) == pytest.approx([1.5, -0.5], abs=1e-4)
    three = _found(_Pipeline(3, lambda v: v[:1] + 5 * (v[2:] - v[1:2])))
    assert three == pytest.approx([1, -5, 5], abs=1e-4)


def test_no_weights_without_guidance_in_calls_of_their_own_and_where_it_is_rescaled() -> None:
    assert _found(_Pipeline(1, lambda v: v)) is None
    assert _found(_Pipeline(2, lambda v: v[:1] + 4 * (v[1:] - v[:1]), together=False)) is None
    assert _found(_Pipeline(2, lambda v: (v[:1] + 4 * (v[1:] - v[:1])).clamp(-0.5, 0.5))) is None
    pipeline = SimpleNamespace(scheduler=None)
    assert guidance_weights(pipeline, _Denoiser(), ["a"], CALL, seed=0) is None
    assert branch_weights([], torch.ones(1)) is None


def test_rows_of_a_sample_lie_together() -> None:
    rows = torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([4 * rows[2 * i + 1] - 3 * rows[2 * i] for i in range(3)])
    torch.testing.assert_close(weighted([-3.0, 4.0])(rows), expected)
