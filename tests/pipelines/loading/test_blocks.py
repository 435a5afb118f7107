"""A denoiser with its blocks on disk is the one that is loaded whole, and so is all that a run makes of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

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


def _changed_settings(model: Path, **changes: Any) -> None:
    file = model / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _changed_weights(model: Path, name: str, tensor: torch.Tensor | None) -> None:
    file = model / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors.pop(name, None)
    save_file(tensors if tensor is None else {**tensors, name: tensor}, file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: _changed_weights(m, "proj_out.bias", None), "lacks the tensor proj_out.bias: its weights are"),
        (lambda m: _changed_weights(m, "pos_embed.pos_embed", None), "lacks the tensor pos_embed.pos_embed"),
        (lambda m: _changed_weights(m, "x.y", torch.ones(1)), "does not use the tensor x.y"),
        (lambda m: _changed_settings(m, num_layers=0), "does not use the tensor transformer_blocks.0"),
        (lambda m: _changed_settings(m, num_layers=10**7), "whose num_layers is 10000000: .*asks for more than"),
        (lambda m: _changed_settings(m, attention_head_dim=10**6), "attention_head_dim = 1000000, more than any size"),
        (lambda m: _changed_settings(m, in_channels=-1), r"cannot load .*config\.json, whose in_channels is -1"),
        (lambda m: _changed_settings(m, num_layers="x"), 'num_layers = "x", which must be a number for SD3Tr'),
        (lambda m: _changed_settings(m, qk_norm="x"), r"diffusers cannot load .*transformer/config\.json: "),
        (lambda m: (m / "transformer" / "config.json").write_text("{"), r"config\.json is not readable JSON"),
    ],
)
def test_broken_files_are_met_as_by_whole_loading(change: Any, words: str, tiny: Tiny, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny.model, tmp_path / "model"))
    config = validate(compose_config([*tiny.overrides(tmp_path), f"model.path={model}"])).model
    offloaded_denoiser(config, model)
    change(model)
    for load in (load_denoiser, offloaded_denoiser):
        with pytest.raises(PipelineError, match=words) as caught:
            load(config, model)
        assert str(model) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_weights_of_another_shape(tiny: Tiny, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny.model, tmp_path / "model"))
    config = validate(compose_config([*tiny.overrides(tmp_path), f"model.path={model}"])).model
    _changed_weights(model, "proj_out.bias", torch.ones(3))
    with pytest.raises(PipelineError, match=r"has another shape for proj_out\.bias: its weights are those of another"):
        offloaded_denoiser(config, model)
    with pytest.raises(
        PipelineError, match=r"proj_out\.bias expected shape .* got torch\.Size\(\[3\]\); restore the file"
    ):
        load_denoiser(config, model)


def test_weights_of_another_architecture(tmp_path: Path) -> None:
    config = validate(compose_config([*tiny_family("sdxl", tmp_path), *DATASET])).model
    file = tmp_path / "pipeline" / "unet" / "config.json"
    file.write_text(file.read_text().replace('"layers_per_block": 1', '"layers_per_block": 2'))
    with pytest.raises(PipelineError, match=r"lacks the tensor down_blocks\.0\.resnets\.1.*another config\.json"):
        offloaded_denoiser(config, tmp_path / "pipeline")
