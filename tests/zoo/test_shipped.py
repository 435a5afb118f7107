"""The pipeline and the scorer as they lie in the repository."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors import safe_open

from segquant_bench.eval import Backends, retrieval_accuracy
from segquant_bench.pipelines.config.sections import CallConfig, ModelConfig
from segquant_bench.pipelines.loading.models import load_pipeline
from segquant_bench.pipelines.runtime.paths import ZOO
from segquant_bench.pipelines.sampling.generate import generate_images
from segquant_bench.pipelines.zoo import card, data, text, vae

PIPELINE = ZOO / "emoji_sd3"
MB = 1e6


CALL = CallConfig(num_inference_steps=20, guidance_scale=4.0, height=64, width=64, max_sequence_length=0)


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline(ModelConfig(name="emoji_sd3", path=str(PIPELINE), dtype="float32", call=CALL), PIPELINE)


def test_files_are_small_and_half_precision():
    files = [f for f in PIPELINE.rglob("*") if f.is_file()]
    assert max(f.stat().st_size for f in files) < 15 * MB
    assert sum(f.stat().st_size for f in files) < 40 * MB
    for file in PIPELINE.rglob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            kinds = {tensors.get_tensor(key).dtype for key in tensors.keys()}  # noqa: SIM118
        assert kinds <= {torch.bfloat16, torch.float16, torch.int64}


def test_it_is_a_stable_diffusion_3_pipeline(pipeline):
    from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    assert type(pipeline) is StableDiffusion3Pipeline
    assert type(pipeline.transformer) is SD3Transformer2DModel
    assert type(pipeline.vae) is AutoencoderKL
    assert type(pipeline.text_encoder) is type(pipeline.text_encoder_2) is CLIPTextModelWithProjection
    assert not torch.equal(pipeline.text_encoder.text_projection.weight, pipeline.text_encoder_2.text_projection.weight)


def test_pictures_are_closest_to_their_own_caption(pipeline, tmp_path):
    """A small draw; the model card has the figure for 256 pictures, where at least 60 % is wanted."""
    prompts = card.evaluation_prompts(32)
    call = CALL.arguments()
    generate_images(pipeline, pipeline.transformer, prompts, tmp_path / "images", call, seed=0, batch_size=16)
    pool = card.evaluation_prompts(256)
    backends = Backends(clip="emoji_clip", clip_path=ZOO / "emoji_clip")
    assert retrieval_accuracy(tmp_path / "images", prompts, backends=backends, pool=pool).value >= 0.6


def test_card_states_at_least_sixty_per_cent():
    found = re.search(r"n = 256 \| ([\d.]+) %", (PIPELINE / "README.md").read_text())
    assert found and float(found[1]) >= 60


def test_scorer_knows_the_real_pictures():
    import open_clip
    from transformers import CLIPTokenizer

    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{ZOO / 'emoji_clip'}")
    pictures, listed = data.load_archive()
    order = torch.randperm(len(listed), generator=torch.Generator().manual_seed(0))[:400]
    ids = text.tokens(CLIPTokenizer.from_pretrained(ZOO / "emoji_clip"), [listed[i].caption for i in order])
    assert text.agreement(model.eval(), vae.to_tensor(pictures[order.numpy()]), ids) > 0.9


def test_autoencoder_reconstructs(pipeline):
    pictures, _ = data.load_archive()
    assert vae.psnr(pipeline.vae, vae.to_tensor(pictures[::100])) > 24
