"""The steps that calibration draws, by their distribution."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm

from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.sampling import own_timesteps, timesteps
from segquant_bench.pipelines.sampling.samples import Sample
from segquant_bench.pipelines.sampling.timesteps import (
    draw_steps,
    inclusion_probabilities,
    normal_weights,
    rounding_loss,
)
from tests.pipelines.conftest import Tiny, compose_config

DRAWN = ("normal", "all", "loss")


def _frequencies(total: int, count: int, draws: int, weights: np.ndarray | None) -> np.ndarray:
    counts = Counter(step for prompt in range(draws) for step in draw_steps(total, count, 0, 1, prompt, weights))
    return np.array([counts[step] / draws for step in range(total)])


def _assert_drawn_as(frequencies: np.ndarray, chances: np.ndarray, draws: int) -> None:
    """Every step within 4.5 standard deviations of its inclusion probability (a binomial count)."""
    spread = np.sqrt(chances * (1 - chances) / draws)
    assert (np.abs(frequencies - chances) <= 4.5 * spread + 1e-12).all()


def test_uniform() -> None:
    _assert_drawn_as(_frequencies(20, 5, 4000, None), np.full(20, 0.25), 4000)
    assert all(len(draw_steps(20, 5, 0, 1, prompt)) == 5 for prompt in range(20))
    assert draw_steps(20, 5, 0, 1, 3) == draw_steps(20, 5, 0, 1, 3) != draw_steps(20, 5, 1, 1, 3)
    with pytest.raises(PipelineError, match="4 steps"):
        draw_steps(4, 5, 0, 1, 0)


def test_all() -> None:
    assert draw_steps(7, None, 0, 1, 0) == frozenset(range(7))


def test_normal_is_the_clipped_normal_of_the_paper() -> None:
    """Against times drawn one by one from N(0.4 T, 0.5 T), clipped to the schedule, counted into steps."""
    times = np.clip(np.random.default_rng(0).normal(0.4, 0.5, 200_000), 0.0, 1.0)
    steps = np.minimum(((1.0 - times) * 20).astype(int), 19)
    shares = normal_weights(20, 0.4, 0.5)
    np.testing.assert_allclose(shares, np.bincount(steps, minlength=20) / len(times), atol=4e-3)
    assert shares.sum() == pytest.approx(1.0)
    assert shares[19] == pytest.approx(norm.cdf(0.05, 0.4, 0.5))
    narrow = normal_weights(20, 0.4, 0.1)
    assert narrow.argmax() in (11, 12) and narrow[0] < 1e-6, "mean 0.4 of the schedule lies past its middle"


@pytest.mark.parametrize(
    "weights",
    [normal_weights(20, 0.4, 0.1), np.arange(20.0), np.r_[100.0, np.ones(19)], np.r_[np.ones(6), np.zeros(14)]],
    ids=["normal", "linear", "one heavy", "few"],
)
def test_steps_are_drawn_in_proportion_to_their_weights(weights: np.ndarray) -> None:
    chances = inclusion_probabilities(weights, 4)
    assert chances.sum() == pytest.approx(4.0) and chances.max() <= 1.0
    free = chances < 1.0
    np.testing.assert_allclose(chances[free], chances[free].sum() * weights[free] / max(weights[free].sum(), 1e-300))
    draws = [draw_steps(20, 4, 0, 1, prompt, weights) for prompt in range(3000)]
    assert all(len(drawn) == 4 for drawn in draws)
    _assert_drawn_as(_frequencies(20, 4, 3000, weights), chances, 3000)


def test_more_steps_than_have_a_weight() -> None:
    with pytest.raises(PipelineError, match="the 3 steps"):
        inclusion_probabilities(np.array([1.0, 2.0, 3.0, 0.0]), 4)
    assert inclusion_probabilities(np.array([1.0, 2.0, 3.0, 0.0]), 3).tolist() == [1, 1, 1, 0]


class _Scaled(torch.nn.Module):
    """A linear whose inputs at some steps lie far below the range that calibration saw."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(16, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def test_loss_is_where_rounding_hurts() -> None:
    """A static scale fits the largest inputs, so the relative error grows as the inputs shrink."""
    torch.manual_seed(0)
    model = _Scaled()
    before = model.linear.weight.clone()
    samples = [
        Sample(prompt, step, {"x": torch.randn(4, 16) * 0.2**step}, {}, {}) for prompt in range(3) for step in range(3)
    ]
    losses = rounding_loss(model, samples, "w8a8_tensor", 3, batch_size=4, device="cpu")
    assert torch.equal(model.linear.weight, before)
    assert losses[0] < losses[1] / 5 < losses[2] / 25
    with pytest.raises(PipelineError, match="at step 3"):
        rounding_loss(model, samples, "w8a8_tensor", 4, batch_size=4, device="cpu")


@pytest.mark.parametrize("rule", DRAWN)
def test_calibration_stage_draws_by_its_rule(rule: str, tiny: Tiny, cache: Path) -> None:
    from segquant_bench.pipelines.sampling.samples import load_samples
    from segquant_bench.pipelines.stages.benchmark import open_run

    overrides = [*tiny.overrides(cache), f"calibration={rule}"]
    if rule == "all":
        overrides.append("calibration.steps_per_prompt=null")
    benchmark = open_run(validate(compose_config(overrides)))
    folder = benchmark.stage("calibrate").path
    chances = json.loads((folder / "steps.json").read_text())["inclusion_probabilities"]
    per_prompt = 4 if rule == "all" else 2
    assert sum(chances) == pytest.approx(per_prompt, abs=1e-4)
    for name, prompts in (("calibration", 4), ("held_out", 2)):
        samples = load_samples(folder / name)
        assert Counter(sample.prompt for sample in samples) == dict.fromkeys(range(prompts), per_prompt)


def test_only_loss_depends_on_the_precision() -> None:
    configs = {name: validate(compose_config([f"calibration={name}"])).calibration for name in DRAWN}
    assert timesteps.depends(configs["normal"], "w8a8", 20) == timesteps.depends(configs["normal"], "w4a8", 20)
    assert timesteps.depends(configs["loss"], "w8a8", 20) != timesteps.depends(configs["loss"], "w4a8", 20)


def test_all_steps_and_a_number_of_steps_exclude_each_other() -> None:
    with pytest.raises(PipelineError, match="takes every step"):
        validate(compose_config(["calibration=all", "calibration.steps_per_prompt=3"]))
    with pytest.raises(PipelineError, match="need a number of steps"):
        validate(compose_config(["calibration.steps_per_prompt=null"]))


@pytest.mark.parametrize("made", [[float("inf"), 1.0], [float("nan"), 1.0], [-1.0, 2.0], [0.0, 0.0]])
def test_weights_of_one_s_own_that_are_none(made: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_timesteps.own_code, "find_function", lambda target, key: None)
    monkeypatch.setattr(own_timesteps.own_code, "call", lambda *_: made)
    own_timesteps._weights.cache_clear()
    with pytest.raises(
        PipelineError, match=r"lab\.late returned \[.*weights are finite, not negative, and not all zero"
    ):
        own_timesteps.own_weights({"_target_": "lab.late"}, 2, 0)
    own_timesteps._weights.cache_clear()
