"""The calls of a first step, and what takes how long."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from segquant_bench.pipelines.runtime.growth import peak_growth_mb, resident_mb
from segquant_bench.pipelines.sampling.first_step import first_step
from segquant_bench.pipelines.sampling.stopwatch import in_turn

CALL = {"num_inference_steps": 3}


class _Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return x * self.scale


class _Scheduler:
    def step(self, output: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return output


class _Pipeline:
    """Two calls a step."""

    def __init__(self, scheduler: Any) -> None:
        self.denoiser, self.scheduler = _Denoiser(), scheduler

    def __call__(self, prompt: list[str], num_inference_steps: int, **_: Any) -> Any:
        x = torch.ones(len(prompt), 2)
        for step in range(num_inference_steps):
            time = torch.tensor(float(step))
            outputs = [self.denoiser(x, timestep=time), self.denoiser(2 * x, timestep=time)]
            if self.scheduler is not None:
                x = self.scheduler.step(sum(outputs), time)
        return SimpleNamespace(images=x)


@pytest.mark.parametrize(("scheduler", "calls"), [(_Scheduler(), 2), (None, 1)])
def test_calls_of_the_first_step_by_name(scheduler: Any, calls: int) -> None:
    pipeline = _Pipeline(scheduler)
    found = first_step(pipeline, pipeline.denoiser, ["a", "b", "c"], CALL, seed=0, batch_size=2)
    assert [each.keys() for each in found] == [{"x", "timestep"}] * calls
    assert all(each["x"].shape == (2, 2) and float(each["timestep"]) == 0.0 for each in found)
    assert not pipeline.denoiser._forward_pre_hooks
    if scheduler is not None:
        assert "step" not in vars(scheduler), "the scheduler is as before"
        assert pipeline(["a"], 2).images.tolist() == [[9.0, 9.0]]


def test_ways_are_called_in_turn_and_warm_rounds_do_not_count() -> None:
    seen: list[str] = []
    found = in_turn({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, repeats=3, warmup=2)
    assert seen == ["a", "b"] * 5
    assert all(len(each.every) == 3 and each.minimum <= each.median for each in found.values())


def test_growth_is_what_a_call_takes_beyond_what_is_held() -> None:
    held = torch.ones(8 * 2**20)  # 32 MiB
    if resident_mb() is None:
        assert peak_growth_mb(lambda: None) is None
        return
    found = peak_growth_mb(lambda: (held + 1).sum())
    assert found is not None and 24 < found < 64
    assert held[0] == 1


def test_growth_counts_what_comes_from_memory_that_the_allocator_kept() -> None:
    """Once another library has moved the heap's end, malloc_trim leaves the free memory before it resident."""
    libc = ctypes.CDLL(None)
    if resident_mb() is None or not hasattr(libc, "mallinfo2"):
        pytest.skip("of Linux with glibc 2.33 or newer")
    large = torch.ones(7 * 2**20, dtype=torch.float32)  # freed, it tells the allocator to keep blocks up to its size
    del large
    blocks = [torch.ones(2**20, dtype=torch.float32) for _ in range(16)]
    libc.sbrk(ctypes.c_ssize_t(4096))
    del blocks
    found = peak_growth_mb(lambda: torch.ones(8 * 2**20, dtype=torch.float32).sum())
    assert found is not None and 24 < found < 64
