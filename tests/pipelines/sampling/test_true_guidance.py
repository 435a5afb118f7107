"""Guidance by a second call of the denoiser in every step: both calls are calibrated on and measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import segquant
from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.sampling.collect import collect
from segquant_bench.pipelines.sampling.generate import bound_inputs
from segquant_bench.pipelines.sampling.samples import Batches, load_samples, save_samples
from tests.pipelines.conftest import compose_config
from tests.tiny_families import tiny_family

PROMPTS = ["red circle", "blue square", "green ring"]
STEPS = 3


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from segquant_bench.pipelines.loading.models import load_pipeline

    folder = tmp_path_factory.mktemp("flux")
    config = validate(compose_config([*tiny_family("flux1_dev", folder), "model.embeddings=live"]))
    return load_pipeline(config.model, folder / "pipeline")


def call(**changes: Any) -> dict[str, Any]:
    return {
        "num_inference_steps": STEPS, "guidance_scale": 3.5, "height": 32, "width": 32, "max_sequence_length": 8,
        **changes,
    }  # fmt: skip


def collected(pipeline: Any, arguments: dict[str, Any], each: int | None = None) -> list[Any]:
    return collect(
        pipeline, pipeline.transformer, PROMPTS, arguments,
        steps_per_prompt=each, seed=0, stream=1, batch_size=2, label="test",
    )  # fmt: skip


def test_both_calls_of_a_step_are_kept(pipeline: Any, tmp_path: Path) -> None:
    """Against a hook on the denoiser, prompt by prompt; the second has the negative prompt's text, not the first's."""
    seen: list[dict[str, Any]] = []
    arguments = call(true_cfg_scale=3.0, negative_prompt="bad")
    with_hook = pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(bound_inputs(module, args, kwargs)), with_kwargs=True
    )
    samples = collected(pipeline, arguments)
    with_hook.remove()
    seen = [inputs for inputs in seen if inputs["hidden_states"].shape[0] <= 2][2:]  # two looks for what is shared
    assert [(s.prompt, s.step, s.call) for s in samples] == [
        (prompt, step, which) for prompt in range(3) for step in range(STEPS) for which in range(2)
    ]
    first, second = samples[0], samples[1]
    assert torch.equal(first.rows["hidden_states"], second.rows["hidden_states"])
    assert not torch.equal(first.rows["encoder_hidden_states"], second.rows["encoder_hidden_states"])
    assert len(seen) == 2 * 2 * STEPS
    for index, sample in enumerate(samples[: 2 * STEPS]):
        assert torch.equal(sample.rows["encoder_hidden_states"][0], seen[index]["encoder_hidden_states"][0])
    negatives = {tuple(s.rows["pooled_projections"].flatten().tolist()) for s in samples if s.call == 1}
    assert len(negatives) == 1, "one negative prompt for all"
    save_samples(samples, tmp_path / "inputs")
    assert [s.call for s in load_samples(tmp_path / "inputs")] == [s.call for s in samples]


def test_one_call_without_it(pipeline: Any) -> None:
    assert {sample.call for sample in collected(pipeline, call(), each=2)} == {0}


def test_both_calls_are_observed(pipeline: Any) -> None:
    """The quantizer sees the unconditional text: its statistics are those of both calls together."""
    samples = collected(pipeline, call(true_cfg_scale=3.0, negative_prompt="bad"), each=2)
    assert len(samples) == len(PROMPTS) * 2 * 2
    stats = segquant.observe(pipeline.transformer, Batches(samples, 4))["context_embedder"]
    text = torch.cat([sample.rows["encoder_hidden_states"].flatten(0, 1) for sample in samples])
    torch.testing.assert_close(stats.mean_square.float(), text.square().mean(0), rtol=1e-4, atol=1e-6)


def test_bfloat16_keeps_its_steps(pipeline: Any) -> None:
    """With a large shift, neighbouring timesteps are one value in bfloat16."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    before = pipeline.scheduler
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=20.0)
    pipeline.to(torch.bfloat16)
    try:
        samples = collected(pipeline, call(num_inference_steps=28, true_cfg_scale=2.0, negative_prompt="bad"), each=4)
        times = pipeline.scheduler.timesteps
    finally:
        pipeline.scheduler = before
        pipeline.to(torch.float32)
    assert len(samples) == len(PROMPTS) * 4 * 2
    assert len(set((times / 1000).bfloat16().tolist())) < 28
    for sample in samples:
        assert float(sample.rows["timestep"][0]) == float(times[sample.step].bfloat16() / 1000)
