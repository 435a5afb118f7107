"""Steps are told apart by the scheduler's numbers, not by the rounded ones that the denoiser gets."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from segquant_bench.pipelines.sampling.clock import Clock, watched
from segquant_bench.pipelines.sampling.collect import collect
from segquant_bench.pipelines.sampling.generate import StepCounter

CLOSE = (999.25, 999.0, 998.5, 998.25, 3.0)
"""In bfloat16 the first four are 1000."""


class Scheduler:
    def __init__(self, times: Sequence[float], begin: int | None = None) -> None:
        self.timesteps, self.begin_index = torch.tensor(times), begin
        self.taken: list[float] = []

    def step(self, noise: torch.Tensor, timestep: Any, sample: torch.Tensor) -> torch.Tensor:
        self.taken.append(float(timestep))
        return sample


class Denoiser(torch.nn.Module):
    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return sample


class Pipeline:
    """Twice the denoiser in every step, which gets the time in bfloat16; some schedulers step twice as well."""

    def __init__(self, times: Sequence[float], steps_each: int = 1) -> None:
        self.scheduler, self.denoiser, self.steps_each = Scheduler(times), Denoiser(), steps_each

    def __call__(self, prompt: list[str], **_: Any) -> SimpleNamespace:
        sample = torch.zeros(len(prompt), 2)
        for index, time in enumerate(self.scheduler.timesteps):
            sample = sample + index
            for _ in range(2):
                self.denoiser(sample, time.bfloat16().expand(len(prompt)))
            for _ in range(self.steps_each):
                self.scheduler.step(sample, time, sample)
        return SimpleNamespace(images=sample)


def collected(pipeline: Pipeline, each: int | None, prompts: int = 3) -> list[tuple[int, int, int, float]]:
    call = {"num_inference_steps": len(pipeline.scheduler.timesteps)}
    samples = collect(
        pipeline, pipeline.denoiser, ["a"] * prompts, call, steps_per_prompt=each, seed=0, stream=1, batch_size=2,
        label="x",
    )  # fmt: skip
    return [(s.prompt, s.step, s.call, float(s.rows["sample"].flatten()[0])) for s in samples]


@pytest.mark.parametrize("steps_each", [1, 2])
def test_steps_that_round_to_one_timestep_stay_apart(steps_each: int) -> None:
    sums = [float(sum(range(step + 1))) for step in range(len(CLOSE))]
    steps, calls = range(len(CLOSE)), range(2)
    expected = [(prompt, step, call, sums[step]) for prompt in range(3) for step in steps for call in calls]
    assert collected(Pipeline(CLOSE, steps_each), None) == expected
    drawn = collected(Pipeline(CLOSE), 2)
    assert len(drawn) == 12 and all(value == sums[step] for _, step, _, value in drawn)


def test_a_step_of_two_calls_is_one() -> None:
    """Heun's scheduler lists its timesteps twice."""
    clock = Clock(Scheduler((9.0, 5.0, 5.0, 1.0, 1.0)))
    counter, steps = StepCounter(clock), []
    for time in (9.0, 5.0, 5.0, 1.0, 1.0):
        steps.append(counter.step({"timestep": torch.tensor(0.0)}))
        clock.stepped(torch.tensor(time))
    assert steps == [0, 1, 1, 2, 2] and clock.timestep() is None


def walked(scheduler: Any, steps: int) -> list[int | None]:
    """The clock's step before every call of the scheduler, as pipelines call it."""
    scheduler.set_timesteps(steps)
    found, sample = [], torch.ones(1, 4, 2, 2)
    with watched(SimpleNamespace(scheduler=scheduler)) as clock:
        assert clock is not None
        for time in scheduler.timesteps:
            scheduler.scale_model_input(sample, time) if hasattr(scheduler, "scale_model_input") else None
            found.append(clock.step())
            scheduler.step(torch.zeros_like(sample), time, sample)
        assert clock.step() is None
    return found


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, "algorithm_type": "dpmsolver++"}),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
        ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 12.0}),
        ("DDIMScheduler", {}),
        ("LCMScheduler", {"original_inference_steps": 100}),
    ],
)
def test_every_call_of_first_order_is_a_step(kind: str, settings: dict[str, Any]) -> None:
    """Also where the scheduler's own timesteps are rounded to one value (Karras' at many steps)."""
    import diffusers

    scheduler = getattr(diffusers, kind)(**settings)
    assert walked(scheduler, 100) == list(range(100))
    if settings.get("use_karras_sigmas"):
        assert len(set(scheduler.timesteps.tolist())) < 100


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("HeunDiscreteScheduler", {}),
        ("HeunDiscreteScheduler", {"use_karras_sigmas": True}),
        ("KDPM2DiscreteScheduler", {}),
        ("PNDMScheduler", {"skip_prk_steps": True}),
    ],
)
def test_more_calls_than_steps(kind: str, settings: dict[str, Any]) -> None:
    """Every step has a call, in order, and none is past the last, which nothing would draw."""
    import diffusers

    found = walked(getattr(diffusers, kind)(**settings), 30)
    assert len(found) > 30 and found == sorted(found) and set(found) == set(range(30))


def test_a_scheduler_without_a_list() -> None:
    """Steps are counted."""
    pipeline = SimpleNamespace(scheduler=SimpleNamespace(step=lambda noise, timestep, sample: sample))
    with watched(pipeline) as clock:
        assert clock is not None
        for index in range(3):
            assert clock.step() == index and clock.timestep() is None
            pipeline.scheduler.step(0, 5.0, 0)


def test_a_pipeline_that_starts_later() -> None:
    clock = Clock(Scheduler(CLOSE, begin=2))
    assert clock.timestep() == 998.5
    clock.stepped(998.5)
    assert clock.timestep() == 998.25
    clock.restart()
    assert clock.timestep() == 998.5


def test_the_scheduler_is_as_it_was_afterwards() -> None:
    pipeline = Pipeline(CLOSE)
    with watched(pipeline) as outer, watched(pipeline) as inner:
        pipeline("a")
        assert outer is not None and inner is not None and outer.timestep() is inner.timestep() is None
    assert "step" not in vars(pipeline.scheduler) and len(pipeline.scheduler.taken) == len(CLOSE)
    with watched(SimpleNamespace()) as none:
        assert none is None
