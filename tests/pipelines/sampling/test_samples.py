"""Samples on disk: those of batches that were kept, put into another order."""

from __future__ import annotations

from pathlib import Path

import torch

from segquant_bench.pipelines.sampling.samples import Sample, load_samples, packed, save_samples, unpacked


def _batch(prompts: tuple[int, ...], steps: tuple[int, ...]) -> list[Sample]:
    """In the order of calls: the prompts of a step have one timestep."""
    return [
        Sample(
            prompt,
            step,
            {"x": torch.full((1, 4), 10.0 * prompt + step), "timestep": torch.tensor([float(step)])},
            {},
            {},
        )
        for step in steps
        for prompt in prompts
    ]


def test_kept_batches_are_saved_as_those_that_were_not(tmp_path: Path) -> None:
    batches = [_batch((0, 1), (2, 5)), _batch((2,), (2, 5))]

    def ordered(parts: list[list[Sample]]) -> list[Sample]:
        return sorted((sample for part in parts for sample in part), key=lambda sample: (sample.prompt, sample.step))

    kept = [unpacked(*packed(batch)) for batch in batches]
    save_samples(ordered(batches), tmp_path / "whole")
    save_samples(ordered(kept), tmp_path / "again")  # prompts 0 and 1 share their timesteps in memory
    for name in ("inputs.safetensors", "inputs.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    found = load_samples(tmp_path / "again")
    assert [(sample.prompt, sample.step) for sample in found] == [(p, s) for p in range(3) for s in (2, 5)]
    assert all(torch.equal(a.rows["x"], b.rows["x"]) for a, b in zip(found, ordered(batches), strict=True))
