"""Captured denoiser inputs against what the denoiser was really called with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.sampling.collect import collect
from segquant_bench.pipelines.sampling.generate import bound_inputs
from segquant_bench.pipelines.sampling.samples import Batches, Sample, cut_sample, load_samples, save_samples
from tests.pipelines.conftest import Tiny, compose_config

PROMPTS = ["red circle", "blue square", "green ring"]
CALL = {"num_inference_steps": 4, "guidance_scale": 3.0, "height": 32, "width": 32, "max_sequence_length": 0}


@pytest.fixture(scope="module")
def pipeline(tiny: Tiny):
    from segquant_bench.pipelines.config.schema import validate
    from segquant_bench.pipelines.loading.models import load_pipeline

    return load_pipeline(validate(compose_config(tiny.overrides(Path("unused")))).model, tiny.model)


def _capture(pipeline, batch_size: int, steps: int = 2) -> list[Sample]:
    return collect(
        pipeline, pipeline.transformer, PROMPTS, CALL,
        steps_per_prompt=steps, seed=0, stream=1, batch_size=batch_size, label="test",
    )  # fmt: skip


def test_samples_are_the_inputs_of_a_lone_prompt(pipeline) -> None:
    """Batched capture equals what a hook sees when each prompt is sampled by itself."""
    samples = _capture(pipeline, batch_size=2, steps=4)
    alone = _capture(pipeline, batch_size=1, steps=4)
    seen: list[dict] = []
    hook = pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(bound_inputs(module, args, kwargs)), with_kwargs=True
    )
    _capture(pipeline, batch_size=1, steps=1)
    hook.remove()
    assert [(s.prompt, s.step) for s in samples] == [(p, step) for p in range(3) for step in range(4)]
    for batched, single, call in zip(samples, alone, seen, strict=True):
        assert batched.rows.keys() == {
            "hidden_states",
            "timestep",
            "encoder_hidden_states",
            "pooled_projections",
        }
        for name, value in batched.rows.items():
            assert value.shape[0] == 2
            torch.testing.assert_close(value, single.rows[name], rtol=1e-4, atol=1e-4)
            assert torch.equal(single.rows[name], call[name])
        assert batched.constants == {"joint_attention_kwargs": None, "return_dict": False}


def test_round_trip_and_batches(pipeline, tmp_path: Path) -> None:
    samples = _capture(pipeline, batch_size=3)
    save_samples(samples, tmp_path / "inputs")
    loaded = load_samples(tmp_path / "inputs")
    assert len(loaded) == len(samples) == 6
    for before, after in zip(samples, loaded, strict=True):
        assert (before.prompt, before.step, before.constants) == (after.prompt, after.step, after.constants)
        assert all(torch.equal(before.rows[name], after.rows[name]) for name in before.rows)
    batches, singles = Batches(loaded, 4), Batches(loaded, 1)
    assert (len(batches), len(singles)) == (2, 6)
    with torch.no_grad():
        together = torch.cat([pipeline.transformer(**batch)[0] for batch in batches])
        apart = torch.cat([pipeline.transformer(**batch)[0] for batch in singles])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)
    assert len(list(batches)) == 2, "batches can be gone through again"


def test_text_of_a_prompt_is_stored_once(pipeline, tmp_path: Path) -> None:
    samples = _capture(pipeline, batch_size=3, steps=4)
    save_samples(samples, tmp_path / "inputs")
    raw = sum(value.numel() * value.element_size() for sample in samples for value in sample.rows.values())
    text = samples[0].rows["encoder_hidden_states"]
    saved = (tmp_path / "inputs" / "inputs.safetensors").stat().st_size
    assert saved < raw - 3 * 2 * text.numel() * text.element_size()


def test_rows_shared_tensors_and_nesting() -> None:
    """A UNet-like call: scalar timestep, a table without batch axis, nested conditions."""
    latents, ids = torch.arange(24.0).reshape(6, 4), torch.arange(5)
    inputs = {
        "sample": latents,
        "timestep": torch.tensor(7.0),
        "ids": ids,
        "added": {"text": latents * 2},
        "flag": True,
    }
    sample = cut_sample(inputs, item=1, batch=3, prompt=9, step=2)
    assert torch.equal(sample.rows["sample"], latents[[1, 4]])
    assert torch.equal(sample.rows["added/text"], 2 * latents[[1, 4]])
    assert sample.rows["timestep"].tolist() == [7.0, 7.0]
    assert torch.equal(sample.shared["ids"], ids) and sample.constants == {"flag": True}
    (batch,) = Batches([sample], 1)
    assert torch.equal(batch["added"]["text"], 2 * latents[[1, 4]]) and batch["flag"] is True
    other = Sample(10, 2, sample.rows, {"ids": ids + 1}, sample.constants)
    assert len(Batches([sample, other], 8)) == 2, "samples whose shared tensors differ stay apart"
    with pytest.raises(PipelineError, match="6 rows for 4 prompts"):
        cut_sample(inputs, item=0, batch=4, prompt=0, step=0)
    with pytest.raises(PipelineError, match="'odd' is a object"):
        cut_sample({**inputs, "odd": object()}, item=0, batch=3, prompt=0, step=0)


def test_calibration_and_evaluation_latents_differ(pipeline) -> None:
    from segquant_bench.pipelines.sampling.generate import prompt_seed

    seeds = {prompt_seed(seed, index, stream) for seed in range(3) for index in range(50) for stream in range(3)}
    assert len(seeds) == 3 * 50 * 3
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_no_prompts(pipeline) -> None:
    with pytest.raises(PipelineError, match="no calibration prompts"):
        collect(
            pipeline, pipeline.transformer, [], CALL,
            steps_per_prompt=1, seed=0, stream=1, batch_size=1, label="test",
        )  # fmt: skip
