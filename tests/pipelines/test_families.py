"""Every published model of conf/model, from its configuration, at reduced depth with random weights: two steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.config.sections import ModelConfig
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.loading.assemble import assemble, write_embeddings
from segquant_bench.pipelines.loading.files import check_room, component_bytes, resolve_directory, weight_bytes
from segquant_bench.pipelines.loading.models import denoiser_name, load_denoiser
from segquant_bench.pipelines.sampling.generate import run_batches
from tests.pipelines.conftest import compose_config
from tests.tiny_families import BUILDERS, CONTROLNETS, tiny_family

DATASET = ["dataset=tiny", "dataset.archive=somewhere"]
PROMPTS = ["red circle", "a blue ring"]


def model_config(overrides: list[str]) -> ModelConfig:
    return validate(compose_config([*overrides, *DATASET])).model


def pictures(pipeline: Any, config: ModelConfig, prompts: list[str], batch_size: int) -> np.ndarray:
    call = config.call.arguments()
    if "controlnet" in pipeline.components:
        call["control_image"] = torch.linspace(0, 1, 3 * 32 * 32).reshape(1, 3, 32, 32).expand(batch_size, -1, -1, -1)
    batches = run_batches(
        pipeline, pipeline.components[denoiser_name(pipeline, config.denoiser)], prompts, call,
        seed=0, stream=0, batch_size=batch_size, output_type="np", label="test",
    )  # fmt: skip
    return np.concatenate([images for _, images in batches])


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_a_family_samples_with_embeddings_computed_beforehand(name: str, tmp_path: Path) -> None:
    config = model_config(tiny_family(name, tmp_path))
    directory = resolve_directory(config)
    prompts = ["Golden Retriever", "1"] if name == "dit_xl_2" else PROMPTS
    folder = None
    if config.embeddings == "cached":
        folder = tmp_path / "embeddings"
        write_embeddings(config, directory, prompts, folder)
    pipeline = assemble(config, directory, folder)
    found = pictures(pipeline, config, prompts, 2)
    assert found.shape == (2, 32, 32, 3) and np.isfinite(found).all() and found.std() > 1e-3
    assert np.abs(found[0] - found[1]).max() > 1e-4
    encoders = [value for key, value in pipeline.components.items() if "text_encoder" in key]
    assert all(value is None for value in encoders) and bool(encoders) == (name != "dit_xl_2")
    assert ("controlnet" in pipeline.components) == (name in CONTROLNETS)
    if config.scheduler:
        assert type(pipeline.scheduler).__name__ == config.scheduler
    whole = pictures(assemble(config, directory, None), config, prompts, 1)
    np.testing.assert_allclose(found, whole, atol=2e-4)


def test_prompts_that_were_not_encoded_are_refused(tmp_path: Path) -> None:
    config = model_config(tiny_family("flux1_schnell", tmp_path))
    directory = resolve_directory(config)
    write_embeddings(config, directory, PROMPTS, tmp_path / "embeddings")
    pipeline = assemble(config, directory, tmp_path / "embeddings")
    with pytest.raises(PipelineError, match="no embedding in .*model.embeddings=live"):
        pictures(pipeline, config, ["a green cross"], 1)
    config.call.max_sequence_length = 4
    with pytest.raises(PipelineError, match="with other arguments"):
        pictures(pipeline, config, PROMPTS, 1)


def test_embeddings_are_stored_once_however_often_they_occur(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    config = model_config(tiny_family("sd3_medium", tmp_path))
    prompts = ["red", "blue", "red", "red blue"]
    write_embeddings(config, resolve_directory(config), prompts, tmp_path / "embeddings")
    tensors = load_file(tmp_path / "embeddings" / "00000.safetensors")
    assert len(tensors) == 2 * 3 + 2  # an embedding and a pooled one each, and those of the negative prompt


@pytest.mark.parametrize(
    ("prompt", "words"), [("golden retriver", "golden retriever"), ("1000", "below 1000"), ("-1", "names no class")]
)
def test_prompts_that_name_no_class(prompt: str, words: str, tmp_path: Path) -> None:
    config = model_config(tiny_family("dit_xl_2", tmp_path))
    pipeline = assemble(config, resolve_directory(config), None)
    with pytest.raises(PipelineError, match=words):
        pictures(pipeline, config, [prompt], 1)
    with pytest.raises(PipelineError, match="32×32, and 64×32 were asked for"):
        pipeline(prompt=["1"], height=64, width=32)


def test_a_class_conditional_pipeline_has_no_embeddings(tmp_path: Path) -> None:
    config = model_config([*tiny_family("dit_xl_2", tmp_path), "model.embeddings=cached"])
    with pytest.raises(PipelineError, match="has no encode_prompt.*model.embeddings=live"):
        write_embeddings(config, resolve_directory(config), ["1"], tmp_path / "embeddings")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.pipeline=StableDiffusionPipelin", "model.pipeline=StableDiffusionPipelin.*StableDiffusionPipeline"),
        ("model.scheduler=DDPMSchedule", "model.scheduler=DDPMSchedule.*DDPMScheduler"),
        ("+model.scheduler_settings.shif=1", "takes no 'shif'.*'shift'"),
        ("model.parts.controlnet.kind=SD3ControlNet", "model.parts.controlnet.kind.*SD3ControlNetModel"),
        ("model.parts.controlnet.path=nowhere", "nowhere is no SD3ControlNetModel.*config.json"),
        ("model.call.controlnet_conditioning_scale=null", None),
    ],
)
def test_parts_that_are_not_there(override: str, words: str | None, tmp_path: Path) -> None:
    config = model_config([*tiny_family("sd3_canny", tmp_path), override])
    if words is None:
        assert "controlnet_conditioning_scale" not in config.call.arguments()
        return
    with pytest.raises(PipelineError, match=words):
        assemble(config, resolve_directory(config), None)


def test_a_repository_whose_main_branch_has_pickles_alone() -> None:
    assert model_config(["model=dit_xl_2"]).revision == "refs/pr/1"


def free_bytes(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    import segquant.modules.memory

    monkeypatch.setattr(segquant.modules.memory, "free_bytes", lambda device: free)


def test_a_model_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free_bytes(monkeypatch, 1000)
    config = model_config([*tiny_family("flux1_dev", tmp_path), "model.embeddings=live"])
    words = r"flux1_dev needs 0\.\d GB .*transformer.*0.0 GB are free on cpu; use .*cached and model.offload=blocks$"
    with pytest.raises(PipelineError, match=words):
        assemble(config, resolve_directory(config), None)


def test_a_controlnet_takes_room_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = model_config([*tiny_family("sd3_canny", tmp_path), "model.embeddings=live"])
    directory = resolve_directory(config)
    pipeline, controlnet = component_bytes(directory, None, 4, {}), weight_bytes(tmp_path / "controlnet", None, 4)
    needed = sum(pipeline.values()) + controlnet
    free_bytes(monkeypatch, needed - 1)
    with pytest.raises(PipelineError, match=r"\(.*controlnet \d.*free on cpu"):
        assemble(config, directory, None)
    free_bytes(monkeypatch, needed)
    assert assemble(config, directory, None).controlnet is not None
    free_bytes(monkeypatch, pipeline["transformer"])
    assert load_denoiser(config, directory) is not None


def test_a_copy_to_quantize_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether a run quantizes is not known when the model is loaded."""
    config = model_config([*tiny_family("sdxl", tmp_path), "model.embeddings=live"])
    directory = resolve_directory(config)
    sizes = component_bytes(directory, None, 4, {})
    for free, warned in ((sum(sizes.values()) + sizes["unet"], False), (sum(sizes.values()), True)):
        free_bytes(monkeypatch, free)
        assemble(config, directory, None)
        assert ("quantizing its unet needs" in caplog.text) == warned


@pytest.mark.parametrize(
    ("overrides", "device", "advice"),
    [
        (["model.offload=blocks"], "cuda", "use model.dtype=bfloat16 or model.device=cpu"),
        (["model.dtype=bfloat16"], "cuda", "use model.offload=components or model.device=cpu"),
        (["model.dtype=bfloat16"], "cpu", "use a machine with more memory"),
    ],
)
def test_text_encoders_that_do_not_fit(
    overrides: list[str], device: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_bytes(monkeypatch, 1000)
    config = model_config([*tiny_family("sd3_canny", tmp_path), *overrides])
    given = dict.fromkeys(("transformer", "vae", "controlnet"))
    with pytest.raises(PipelineError, match=rf"GB are free on {device}; {advice}$"):
        check_room(config, resolve_directory(config), given, device, "transformer")


def test_components_that_wait_need_room_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import segquant.modules.memory

    config = model_config([*tiny_family("sd3_canny", tmp_path), "model.offload=components"])
    directory = resolve_directory(config)
    largest = component_bytes(directory, None, 4, {})["transformer"] + weight_bytes(tmp_path / "controlnet", None, 4)
    free = {"cuda": largest, "cpu": None}
    monkeypatch.setattr(segquant.modules.memory, "free_bytes", lambda place: free[place.type])
    check_room(config, directory, {}, "cuda", "transformer")
    free["cuda"] = largest - 1
    with pytest.raises(PipelineError, match=r"\(\w+ 0.\d, \w+ 0.\d\), .* free on cuda; use model.offload=blocks$"):
        check_room(config, directory, {}, "cuda", "transformer")
