"""Loading a pipeline: what a directory must hold, and which part is the denoiser."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.loading.models import (
    check_directory,
    check_safetensors,
    denoiser_name,
    fingerprint,
    load_pipeline,
    resolve_device,
)
from tests.pipelines.conftest import Tiny, compose_config


def test_sharded_weights_need_every_shard(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny.model, tmp_path / "model")
    folder = tmp_path / "model" / "transformer"
    (whole,) = folder.glob("*.safetensors")
    whole.rename(folder / "diffusion_pytorch_model-00001-of-00002.safetensors")
    names = [f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(PipelineError, match="00002-of-00002.safetensors is missing"):
        check_directory(tmp_path / "model")
    shutil.copy(folder / names[0], folder / names[1])
    check_directory(tmp_path / "model")


def test_whole_and_broken_safetensors(tiny: Tiny, tmp_path: Path) -> None:
    (whole,) = (tiny.model / "vae").glob("*.safetensors")
    check_safetensors(whole)
    for content in (b"", b"1234", (10**9).to_bytes(8, "little"), (2).to_bytes(8, "little") + b"[]"):
        (tmp_path / "broken.safetensors").write_bytes(content)
        with pytest.raises(PipelineError, match="header cannot be read"):
            check_safetensors(tmp_path / "broken.safetensors")


def test_fingerprint_knows_weights_not_place(tiny: Tiny, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny.model, tmp_path / "copy"))
    assert fingerprint(copy) == fingerprint(tiny.model)
    (file,) = (copy / "vae").glob("*.safetensors")
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    assert fingerprint(copy) != fingerprint(tiny.model)


def test_pipeline_is_quiet_typed_and_has_a_denoiser(
    tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = validate(compose_config([*tiny.overrides(tmp_path), "model.dtype=bfloat16"])).model
    pipeline = load_pipeline(config, tiny.model)
    assert capfd.readouterr().err == ""
    assert type(pipeline).__name__ == "StableDiffusion3Pipeline"
    assert {parameter.dtype for parameter in pipeline.transformer.parameters()} == {torch.bfloat16}
    assert denoiser_name(pipeline, None) == "transformer"
    assert denoiser_name(pipeline, "transformer") == "transformer"
    with pytest.raises(PipelineError, match="'unet'; set model.denoiser to one of .*transformer"):
        denoiser_name(pipeline, "unet")


def test_argument_that_the_pipeline_does_not_take(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = validate(compose_config(tiny.overrides(tmp_path))).model
    monkeypatch.setattr(type(config.call), "arguments", lambda self: {"num_inference_step": 3})
    with pytest.raises(PipelineError, match="takes no 'num_inference_step'.*'num_inference_steps'"):
        load_pipeline(config, tiny.model)


def test_device() -> None:
    assert resolve_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == "cpu"
    with pytest.raises(PipelineError, match="model.device='nowhere'"):
        resolve_device("nowhere")
