"""Pipelines, denoisers, devices and calls that would fail while pictures are made."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest

from segquant.errors import QuantizationError
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.loading.call_inputs import check_components, check_inputs, check_takes
from segquant_bench.pipelines.loading.models import resolve_device
from segquant_bench.pipelines.runtime.pipeline_call import Stopped, told_by_sentence
from tests.pipelines.conftest import Command, Tiny

CALL = ("height", "width", "num_inference_steps", "guidance_scale")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.call.max_sequence_length=100000", "refuses model.call.max_sequence_length=100000"),
        ("model.call.height=10000", "model.call.height=10000 is more than the 64 pixels"),
        ("model.pipeline=StableDiffusion3Img2ImgPipeline", "needs image, which the benchmark does not give"),
        ("model.pipeline=FluxPipeline", "needs a FluxTransformer2DModel as its transformer"),
        ("model.denoiser=text_encoder", "no denoiser 'text_encoder'; set model.denoiser to one of transformer"),
        ("model.denoiser=vae", "no denoiser 'vae'; set model.denoiser to one of transformer"),
        ("model.device=meta", "model.device='meta' cannot be used here"),
    ],
)
def test_command_is_refused(command: Command, tiny: Tiny, tmp_path: Path, override: str, words: str) -> None:
    outcome = command(*tiny.overrides(tmp_path / "cache"), override)
    assert outcome.code == 1 and "Traceback" not in outcome.err
    assert words in outcome.sentence and len(outcome.sentence) < 700
    assert not list((tmp_path / "cache" / "stage").glob("*/stage.json"))


def test_a_fault_while_pictures_are_made(
    command: Command, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("odd latents\nand more")

    monkeypatch.setattr(diffusers.StableDiffusion3Pipeline, "prepare_latents", fail)
    outcome = command(*tiny.overrides(tmp_path / "cache"))
    assert outcome.code == 1 and "Traceback" not in outcome.err
    assert "StableDiffusion3Pipeline fails while it samples (RuntimeError: odd latents)" in outcome.sentence


def test_unknown_device_is_one_short_line() -> None:
    with pytest.raises(PipelineError, match=r"set model\.device=cpu") as raised:
        resolve_device("ipu")
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    ("name", "control", "words"),
    [
        ("StableDiffusion3Img2ImgPipeline", False, "image"),
        ("StableDiffusion3InpaintPipeline", False, "mask_image, image"),
        ("StableDiffusionXLImg2ImgPipeline", False, "image"),
        ("FluxControlPipeline", False, "control_image"),
        ("DiTPipeline", False, "class_labels"),
        ("FluxControlPipeline", True, ""),
        ("StableDiffusion3Pipeline", False, ""),
        ("PixArtSigmaPipeline", False, ""),
    ],
)
def test_pipelines_of_prompts_alone(name: str, control: bool, words: str) -> None:
    kind = getattr(diffusers, name)
    if not words:
        check_takes(kind, name, CALL, control)
        return
    with pytest.raises(PipelineError, match=f"{name} needs {words}, which"):
        check_takes(kind, name, CALL, control)


def test_components_of_another_class() -> None:
    flux, named = diffusers.FluxPipeline, ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2")
    found = {**dict.fromkeys((*named, "tokenizer_2")), "transformer": diffusers.FluxTransformer2DModel}
    check_components(flux, "x", found)
    with pytest.raises(PipelineError, match="x needs a FluxTransformer2DModel"):
        check_components(flux, "x", {**found, "transformer": diffusers.SD3Transformer2DModel})
    found.pop("tokenizer_2")
    with pytest.raises(PipelineError, match="x needs a component tokenizer_2"):
        check_components(flux, "x", found)


def test_binned_sizes_are_not_refused() -> None:
    class Binned:
        def __call__(self, prompt: str, height: int, width: int, use_resolution_binning: bool = True) -> None: ...

        def check_inputs(self, prompt: str, height: int, width: int) -> None:
            if height % 32 or width % 32:
                raise ValueError("`height` has to be divisible by 32")

    check_inputs(Binned(), {"height": 1000, "width": 1000})
    with pytest.raises(PipelineError, match="Binned refuses model.call.height=1000 "):
        check_inputs(Binned(), {"height": 1000, "width": 1000, "use_resolution_binning": False})


def test_whatever_a_call_raises_is_a_sentence() -> None:
    words = r"SimpleNamespace fails while it samples \(KeyError: 'x'\)"
    with pytest.raises(PipelineError, match=words), told_by_sentence(SimpleNamespace()):
        raise KeyError("x")
    with pytest.raises(PipelineError, match=r"\(ValueError: first\)"), told_by_sentence(SimpleNamespace()):
        raise ValueError("first\nsecond")


@pytest.mark.parametrize(
    "error", [PipelineError("x"), Stopped(), MemoryError(), OSError("x"), QuantizationError("x"), KeyboardInterrupt()]
)
def test_what_is_told_elsewhere_passes(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, told_by_sentence(SimpleNamespace()):
        raise error
    assert raised.value is error
