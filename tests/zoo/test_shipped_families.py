"""The trained pipelines of the other families, as they lie in the repository."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from segquant_bench.eval import Backends, retrieval_accuracy
from segquant_bench.pipelines.loading.files import resolve_directory
from segquant_bench.pipelines.loading.models import denoiser_name, load_pipeline
from segquant_bench.pipelines.runtime.paths import FAMILIES, HOME, ZOO
from segquant_bench.pipelines.sampling.generate import generate_images
from segquant_bench.pipelines.zoo import card, data

CLASSES = {"flux": "FluxPipeline", "sdxl": "StableDiffusionXLPipeline", "canny": "StableDiffusion3ControlNetPipeline"}
TRAINED = [
    pytest.param(
        family,
        marks=pytest.mark.skipif(
            not (ZOO / FAMILIES[family] / "README.md").exists(), reason=f"{FAMILIES[family]} is not trained yet"
        ),
    )
    for family in CLASSES
]


@pytest.mark.parametrize("family", TRAINED)
def test_files_are_small_half_precision_and_shared_by_links(family: str) -> None:
    folder = ZOO / FAMILIES[family]
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files if file.suffix != ".png") < 30e6
    assert max(file.stat().st_size for file in files) < 15e6
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as tensors:
                kinds = {tensors.get_tensor(key).dtype for key in tensors.keys()}  # noqa: SIM118
            assert kinds <= {torch.bfloat16, torch.int64}
    shared = [folder / "vae" / "diffusion_pytorch_model.safetensors"] if family != "canny" else []
    assert all(file.is_symlink() and file.resolve().is_relative_to(ZOO / "emoji_sd3") for file in shared)


# emoji_sd3 has a test of its own; a UNet and a ControlNet take longer
@pytest.mark.parametrize(
    "family", ["flux", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sdxl", "canny"))]
)
def test_pictures_are_closest_to_their_own_caption(family: str, tmp_path: Path) -> None:
    """A small draw; the model card has the figure for 256 pictures, where at least 60 % is wanted."""
    config = card.load_run(family).model
    pipe = load_pipeline(config, resolve_directory(config))
    assert type(pipe).__name__ == CLASSES[family]
    prompts, pool = card.evaluation_prompts(24), card.evaluation_prompts(256)
    inputs = card.edges_of(prompts) if family == "canny" else None
    denoiser = pipe.components[denoiser_name(pipe, config.denoiser)]
    call = config.call.arguments()
    generate_images(pipe, denoiser, prompts, tmp_path / "images", call, seed=0, batch_size=24, inputs=inputs)
    backends = Backends(clip="emoji_clip", clip_path=ZOO / "emoji_clip")
    assert retrieval_accuracy(tmp_path / "images", prompts, backends=backends, pool=pool).value >= 0.6
    if family == "canny":
        assert card.edge_agreement(tmp_path / "images", prompts) > 0.5


@pytest.mark.parametrize("family", TRAINED)
def test_card_states_at_least_sixty_per_cent(family: str) -> None:
    found = re.search(r"n = 256 \| ([\d.]+) %", (ZOO / FAMILIES[family] / "README.md").read_text())
    assert found and float(found[1]) >= 60


def test_edges_of_the_right_picture_agree_and_those_of_another_do_not(tmp_path: Path) -> None:
    prompts = card.evaluation_prompts(8)
    arrays, listed = data.load_archive()
    by_caption = {picture.caption: array for picture, array in zip(listed, arrays, strict=True)}
    for index, prompt in enumerate(prompts):
        Image.fromarray(by_caption[prompt]).save(tmp_path / f"{index:05d}.png")
    assert card.edge_agreement(tmp_path, prompts) == pytest.approx(1.0)
    assert card.edge_agreement(tmp_path, prompts[::-1]) < 0.6


@pytest.mark.parametrize("family", ["sd3", *TRAINED])
def test_what_a_card_tells_to_run_runs(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own lines, with fewer steps."""
    text = (ZOO / FAMILIES[family] / "README.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found is not None and "num_inference_steps=20" in found[1]
    lines = found[1].replace("num_inference_steps=20", "num_inference_steps=1").replace("\npipe(", "\npicture = pipe(")
    made = {"edges": Image.new("RGB", (64, 64))}
    monkeypatch.chdir(HOME)
    exec(compile(lines, "card", "exec"), made)
    assert made["picture"].size == (64, 64)
