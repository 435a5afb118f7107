"""The published settings that conf/model stands for, written down a second time: a number that people quote depends on
each of them."""

from __future__ import annotations

import pytest

from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.config.sections import ModelConfig
from tests.pipelines.conftest import compose_config

# steps, guidance, pixels, dtype, sampler other than the shipped one
SETTINGS = {
    "sd3_medium": (50, 7.0, 1024, "float16", None),  # SegQuant, arXiv 2507.14811
    "sd35_medium": (50, 7.0, 1024, "bfloat16", None),
    "sd35_large": (50, 3.5, 1024, "bfloat16", None),  # guidance of its model card
    "flux1_dev": (50, 3.5, 1024, "bfloat16", None),
    "flux1_schnell": (4, 0.0, 1024, "bfloat16", None),  # SVDQuant, arXiv 2411.05007
    "sdxl": (50, 5.0, 1024, "float16", None),
    "sdxl_turbo": (4, 0.0, 512, "float16", None),
    "pixart_sigma": (20, 4.5, 1024, "float16", None),
    "sana": (20, 4.5, 1024, "bfloat16", None),
    "dit_xl_2": (50, 1.5, 256, "float32", "DDPMScheduler"),  # PTQ4DiT, arXiv 2405.16005
    "sd3_canny": (30, 7.0, 1024, "float16", None),  # SegQuant, tables 1 and 3
    "flux_canny": (50, 3.5, 1024, "bfloat16", None),
}
SCALES = {"sd3_canny": 0.7, "flux_canny": 0.6}


def _model(name: str) -> ModelConfig:
    return validate(compose_config([f"model={name}"])).model


@pytest.mark.parametrize("name", SETTINGS)
def test_published_settings(name: str) -> None:
    model = _model(name)
    call = model.call.arguments()
    found = (call["num_inference_steps"], call["guidance_scale"], call["height"], model.dtype, model.scheduler)
    assert found == SETTINGS[name] and call["width"] == call["height"]
    assert call.get("controlnet_conditioning_scale") == SCALES.get(name)
    assert bool(model.parts) == (model.control == "canny") == (name in SCALES)
    assert model.convolutions == name.startswith("sdxl")  # a UNet is quantized whole
    assert (model.embeddings == "cached") == (name != "dit_xl_2")  # classes need no text encoder


def test_embedded_pipelines_differ_in_nothing_that_they_need_not() -> None:
    models = [_model(name) for name in ("emoji_sd3", "emoji_flux", "emoji_sdxl", "emoji_sd3_canny")]
    shared = {
        (m.call.num_inference_steps, m.call.guidance_scale, m.call.height, m.call.width, m.dtype, m.batch_size)
        for m in models
    }
    assert shared == {(20, 4.0, 64, 64, "float32", 16)}
