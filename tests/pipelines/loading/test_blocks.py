"""A denoiser with its blocks on disk is the one that is loaded whole, and so is all that a run makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from segquant_bench.pipelines.config.quantizer import build_method
from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.loading.blocks import offloaded_denoiser
from segquant_bench.pipelines.loading.models import load_denoiser
from segquant_bench.pipelines.stages.benchmark import open_run, run_all
from tests.pipelines.conftest import Tiny, compose_config
from tests.tiny_families import tiny_family

DATASET = ["dataset=tiny", "dataset.archive=somewhere"]


@pytest.mark.parametrize("name", ["sd3_medium", "flux1_dev", "sdxl", "pixart_sigma", "sana", "dit_xl_2"])
def test_offloaded_tensors_are_those_that_diffusers_loads(name: str, tmp_path: Path) -> None:
    overrides = [*tiny_family(name, tmp_path), "model.dtype=bfloat16", *DATASET]
    config = validate(compose_config(overrides)).model
    directory = tmp_path / "pipeline"
    whole, offloaded = load_denoiser(config, directory), offloaded_denoiser(config, directory)
    assert type(offloaded.model) is type(whole) and len(offloaded.waiting) >= 2
    waiting = [tensor for tensor in offloaded.model.parameters() if tensor.device.type == "meta"]
    assert sum(p.numel() for p in waiting) > 0.5 * sum(p.numel() for p in whole.parameters())
    for block in list(offloaded.waiting):
        offloaded.bring(block)
    found = {**dict(offloaded.model.named_parameters()), **dict(offloaded.model.named_buffers())}
    expected = {**dict(whole.named_parameters()), **dict(whole.named_buffers())}
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype and torch.equal(found[key], tensor), key


@pytest.mark.parametrize("quantizer", ["segquant_g", "rtn"])
def test_a_run_with_blocks_on_disk(quantizer: str, tiny: Tiny, tmp_path: Path) -> None:
    runs = {}
    for offload in ("none", "blocks"):
        overrides = [
            *tiny.overrides(tmp_path / offload), f"quantizer={quantizer}", "model.embeddings=cached",
            f"model.offload={offload}", "dataset.size=2", "run=reference",
        ]  # fmt: skip
        run = open_run(validate(compose_config(overrides)))
        run_all(run)
        runs[offload] = run
    one, other = runs["none"], runs["blocks"]
    assert one.stage("quantize").key == other.stage("quantize").key
    for name in ("quantize", "reference", "generate"):
        files = sorted((one.finished[name].path).rglob("*"))
        for file in (file for file in files if file.suffix in (".png", ".safetensors")):
            twin = other.finished[name].path / file.relative_to(one.finished[name].path)
            assert file.read_bytes() == twin.read_bytes(), file


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["calibration=loss"], "calibration.timesteps=loss needs the whole denoiser"),
        (["quantizer=quanto", "precision=w4a16"], "quantizer=quanto needs the whole denoiser"),
        (["model.embeddings=cached", "quantize=[denoiser,text_encoder]"], "model.embeddings=live"),
        (["model.offload=disk"], "model.offload='disk' is not known.*blocks"),
    ],
)
def test_what_offloading_leaves_out(overrides: list[str], words: str, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=words):
        build_method(validate(compose_config([*tiny.overrides(tmp_path), "model.offload=blocks", *overrides])))


def test_weights_of_another_architecture(tmp_path: Path) -> None:
    config = validate(compose_config([*tiny_family("sdxl", tmp_path), *DATASET])).model
    file = tmp_path / "pipeline" / "unet" / "config.json"
    file.write_text(file.read_text().replace('"layers_per_block": 1', '"layers_per_block": 2'))
    with pytest.raises(PipelineError, match="cannot be offloaded: .*lack down_blocks.0.resnets.1.* model.offload=none"):
        offloaded_denoiser(config, tmp_path / "pipeline")
