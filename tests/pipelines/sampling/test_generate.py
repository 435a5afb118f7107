"""Pictures: one seed per prompt, whatever the batch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.sampling.generate import StepCounter, finite_output, generate_images, prompt_seed
from tests.pipelines.conftest import Tiny, compose_config

PROMPTS = ["red circle", "blue square", "green ring"]
CALL = {"num_inference_steps": 3, "guidance_scale": 3.0, "height": 32, "width": 32, "max_sequence_length": 0}


@pytest.fixture(scope="module")
def pipeline(tiny: Tiny):
    from segquant_bench.pipelines.config.schema import validate
    from segquant_bench.pipelines.loading.models import load_pipeline

    return load_pipeline(validate(compose_config(tiny.overrides(Path("unused")))).model, tiny.model)


def _generate(pipeline, folder: Path, prompts: list[str], batch_size: int) -> list[np.ndarray]:
    generate_images(pipeline, pipeline.transformer, prompts, folder, CALL, seed=5, batch_size=batch_size)
    pictures = []
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as picture:
            pictures.append(np.asarray(picture).astype(int))
    return pictures


def test_picture_does_not_depend_on_its_batch(pipeline, tmp_path: Path) -> None:
    together = _generate(pipeline, tmp_path / "together", PROMPTS, 3)
    apart = _generate(pipeline, tmp_path / "apart", PROMPTS, 1)
    for left, right in zip(together, apart, strict=True):
        assert np.abs(left - right).max() <= 1
    assert np.abs(together[0] - together[1]).max() > 5


def test_picture_is_what_the_pipeline_makes_of_its_seed(pipeline, tmp_path: Path) -> None:
    """Against a plain diffusers call with the manifest's seed."""
    pictures = _generate(pipeline, tmp_path / "ours", PROMPTS, 1)
    manifest = json.loads((tmp_path / "ours" / "manifest.json").read_text())
    assert [row["prompt"] for row in manifest["images"]] == PROMPTS
    for row, picture in zip(manifest["images"], pictures, strict=True):
        generator = torch.Generator().manual_seed(row["seed"])
        plain = pipeline(row["prompt"], generator=generator, **CALL).images[0]
        assert np.array_equal(np.asarray(plain), picture)
        with Image.open(tmp_path / "ours" / row["file"]) as file:
            assert file.format == "PNG" and file.mode == "RGB"


def test_no_prompts(pipeline, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="no prompts"):
        _generate(pipeline, tmp_path / "none", [], 1)
    assert not (tmp_path / "none").exists()


class _Breaks(torch.nn.Module):
    """NaN in the row of the second prompt from the third call on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
        self.calls += 1
        result = sample.clone()
        if self.calls == 3:
            result[1, 0] = torch.inf
        return (result,)


def test_nan_names_step_timestep_and_prompt() -> None:
    module = _Breaks()
    with (
        pytest.raises(PipelineError, match=r"step 3 of 9 \(timestep 700\) for prompt 'b'"),
        finite_output(module, 9, ["a", "b"]),
    ):
        for timestep in (900, 800, 700):
            module(torch.zeros(4, 2), torch.tensor(timestep))
    module(torch.full((1, 1), torch.nan), torch.tensor(1))  # the hook is gone


def test_step_counter() -> None:
    counter = StepCounter()
    assert [counter.step({"timestep": torch.tensor([t, t])}) for t in (9, 9, 5, 5, 1)] == [0, 0, 1, 1, 2]
    counter = StepCounter()
    assert [counter.step({}) for _ in range(3)] == [0, 1, 2]


def test_seeds_of_neighbours_differ() -> None:
    assert prompt_seed(0, 1) != prompt_seed(1, 0)
    assert prompt_seed(0, 1) == prompt_seed(0, 1)
