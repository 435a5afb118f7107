"""The plug-in: diffusers' own from_pretrained and save_pretrained with quantized models."""

from __future__ import annotations

import copy
import importlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import segquant
from segquant import QuantizationError, QuantLinear, presets

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("accelerate")
from segquant.deploy.diffusers import SegQuantConfig, load_calibration, save_calibration  # noqa: E402
from tests.segquant.deploy.tiny import inputs, out, small  # noqa: E402

METHOD = presets.segquant_a("w4a8", rank=2, alpha=0.5, skip=("proj_out",))
EIGHT = presets.segquant_a("w8a8_tensor", alpha=0.5)


@pytest.fixture(scope="module")
def float_model() -> nn.Module:
    return small()


@pytest.fixture(scope="module")
def made(float_model: nn.Module) -> nn.Module:
    """Every kind of tensor: dual scales, pieces, int4 codes, smoothing, fp16 factors, a convolution."""
    return segquant.quantize_(copy.deepcopy(float_model), METHOD, [inputs(1), inputs(2)])


@pytest.fixture
def model(made: nn.Module) -> nn.Module:
    return copy.deepcopy(made)


Writer = Callable[[nn.Module, Path], Any]
WRITERS: dict[str, Writer] = {
    "save_quantized": segquant.save_quantized,
    "save_pretrained": lambda model, folder: model.save_pretrained(folder),
    "shards": lambda model, folder: model.save_pretrained(folder, max_shard_size="20KB"),
}


def read(folder: Path, **kwargs: Any) -> nn.Module:
    return diffusers.SD3Transformer2DModel.from_pretrained(folder, **kwargs)


def same_state(found: nn.Module, expected: nn.Module) -> None:
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reads_what_was_written_bit_for_bit(
    model: nn.Module, tmp_path: Path, writer: str, dtype: torch.dtype, recwarn: pytest.WarningsRecorder
) -> None:
    model.to(dtype)
    WRITERS[writer](model, tmp_path / "model")
    found = read(tmp_path / "model")
    same_state(found, model)
    assert torch.equal(out(found), out(model)) and found.dtype == dtype and not recwarn.list
    assert isinstance(found.transformer_blocks[0].attn.to_q, QuantLinear) and not found.training
    same_state(segquant.load_quantized(tmp_path / "model") if writer == "save_quantized" else found, model)


@pytest.mark.parametrize("given", [{"device_map": "cpu"}, {"device_map": "auto"}, {"low_cpu_mem_usage": True}, {}])
def test_scales_stay_float32_under_another_dtype(model: nn.Module, tmp_path: Path, given: dict[str, Any]) -> None:
    segquant.save_quantized(model, tmp_path / "model")
    found = read(tmp_path / "model", torch_dtype=torch.bfloat16, **given)
    same_state(found, model.to(torch.bfloat16))
    assert torch.equal(out(found), out(model)) and diffusers.SD3Transformer2DModel._keep_in_fp32_modules is None
    same_state(found.to(torch.float32), model.to(torch.float32))


@pytest.mark.parametrize("precision", ["nvfp4", "mxfp6", "q5_1", "w4a8_asym"])
def test_codes_and_scales_of_every_kind_stay_what_they_are(
    float_model: nn.Module, tmp_path: Path, precision: str
) -> None:
    """Bytes of codes, of scales and of zero points, float16 and second scales: under another dtype, and without one."""
    model = segquant.quantize_(copy.deepcopy(float_model), presets.rtn(precision), [inputs(1)])
    model.save_pretrained(tmp_path / "model")
    same_state(read(tmp_path / "model"), model)
    for dtype in (torch.bfloat16, torch.float16):
        same_state(read(tmp_path / "model", torch_dtype=dtype), copy.deepcopy(model).to(dtype))


def test_convolutions_and_the_class_of_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=4, in_channels=2, out_channels=2, block_out_channels=(8,), norm_num_groups=2, layers_per_block=1,
        attention_head_dim=4, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    ).eval()  # fmt: skip
    batch = (torch.randn(2, 2, 4, 4), torch.tensor([3, 700]))
    segquant.quantize_(unet, presets.rtn("w8a8", convolutions=True), [batch]).to(memory_format=torch.channels_last)
    for writer in WRITERS.values():
        writer(unet, tmp_path / "unet")
        found = diffusers.AutoModel.from_pretrained(str(tmp_path / "unet"))
        same_state(found, unet)
        with torch.no_grad():
            assert torch.equal(found(*batch).sample, unet(*batch).sample)
        shutil.rmtree(tmp_path / "unet")


def test_saved_again_after_it_was_read(model: nn.Module, tmp_path: Path) -> None:
    expected = out(model)
    for step, writer in enumerate(WRITERS.values()):
        writer(model, tmp_path / str(step))
        assert "quantization_config" not in vars(model).get("config", {}) and torch.equal(out(model), expected)
        model = read(tmp_path / str(step))
    assert torch.equal(out(model), expected)


def test_a_pipeline_and_its_offload(model: nn.Module, tmp_path: Path) -> None:
    from accelerate import cpu_offload_with_hook

    vae = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4)
    diffusers.DiTPipeline(model, vae, diffusers.DDIMScheduler()).save_pretrained(tmp_path / "pipe")
    found = diffusers.DiTPipeline.from_pretrained(tmp_path / "pipe", torch_dtype=torch.bfloat16)
    same_state(found.transformer, model.to(torch.bfloat16))
    assert found.vae.dtype == torch.bfloat16
    hooked, hook = cpu_offload_with_hook(found.transformer, "cpu")
    assert torch.equal(out(hooked), out(model))
    hook.offload()
    assert torch.equal(out(hooked), out(model))


def test_adapters_beside_what_was_read(model: nn.Module, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    segquant.save_quantized(model, tmp_path / "model")
    adapted, plain = read(tmp_path / "model"), out(model)
    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_out.0"], init_lora_weights=False)
    torch.manual_seed(0)
    adapted.add_adapter(config)
    expected = out(adapted)
    assert not torch.equal(expected, plain)
    adapted.save_lora_adapter(tmp_path / "lora")
    with pytest.raises(QuantizationError, match="unload_lora_weights"):
        adapted.save_pretrained(tmp_path / "adapted")
    again = read(tmp_path / "model")
    again.load_lora_adapter(tmp_path / "lora", prefix=None, weight_name="pytorch_lora_weights.safetensors")
    assert torch.equal(out(again), expected)
    with pytest.raises(QuantizationError, match="leave it beside the layers"):
        again.fuse_lora()
    again.unload_lora()
    again.save_pretrained(tmp_path / "again")
    assert torch.equal(out(read(tmp_path / "again")), plain)


def test_quantizes_on_load(float_model: nn.Module, tmp_path: Path) -> None:
    float_model.save_pretrained(tmp_path / "pipe" / "transformer")
    batches = [inputs(1), inputs(2)]
    save_calibration(batches, tmp_path / "batches.safetensors")
    # of the same files: where in memory a tensor begins changes the last bit of a product
    loaded = load_calibration(tmp_path / "batches.safetensors")
    expected = segquant.quantize_(read(tmp_path / "pipe" / "transformer"), EIGHT, loaded)
    settings = {
        "method": {"name": "segquant_a", "precision": "w8a8_tensor", "alpha": 0.5},
        "calibration": str(tmp_path / "batches.safetensors"),
    }
    of_pipe = diffusers.PipelineQuantizationConfig(quant_backend="segquant", quant_kwargs=settings)
    found = read(tmp_path / "pipe" / "transformer", quantization_config=of_pipe._resolve_quant_config())
    same_state(found, expected)
    found.save_pretrained(tmp_path / "again")
    same_state(read(tmp_path / "again"), expected)
    half = read(tmp_path / "pipe" / "transformer", torch_dtype=torch.bfloat16, quantization_config=SegQuantConfig(EIGHT,
                calibration=tmp_path / "batches.safetensors"))  # fmt: skip
    assert half.dtype == torch.bfloat16 and out(half).isfinite().all()
    without = SegQuantConfig("rtn", "w8a8_dynamic")
    assert isinstance(read(tmp_path / "pipe" / "transformer", quantization_config=without).proj_out, QuantLinear)
    with pytest.raises(QuantizationError, match="segquant_a on load needs calibration=FILE"):
        read(tmp_path / "pipe" / "transformer", quantization_config=SegQuantConfig("segquant_a"))


def test_calibration_files(tmp_path: Path) -> None:
    batches = [(torch.ones(2, 3), None, [torch.zeros(1), {"a": 2.5}]), {"x": torch.tensor(3), "flag": True, "t": ()}]
    save_calibration(iter(batches), tmp_path / "b.safetensors")
    first, second = load_calibration(tmp_path / "b.safetensors")
    assert torch.equal(first[0], batches[0][0]) and first[1] is None and first[2][1] == {"a": 2.5}
    assert second["x"].item() == 3 and second["flag"] is True and second["t"] == ()
    with pytest.raises(QuantizationError, match="no batches to save"):
        save_calibration([], tmp_path / "c.safetensors")
    with pytest.raises(QuantizationError, match="batch 0, x: a set cannot be written"):
        save_calibration([{"x": {1}}], tmp_path / "c.safetensors")
    with pytest.raises(QuantizationError, match="is missing"):
        load_calibration(tmp_path / "c.safetensors")
    (tmp_path / "d.safetensors").write_bytes(b"not a file of tensors")
    with pytest.raises(QuantizationError, match="is damaged"):
        load_calibration(tmp_path / "d.safetensors")
    segquant.files.write_tensors(tmp_path / "e.safetensors", {"x": torch.ones(1)})
    with pytest.raises(QuantizationError, match="holds no calibration batches"):
        load_calibration(tmp_path / "e.safetensors")


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "dtype": (lambda folder: read(folder, torch_dtype=torch.float8_e4m3fn), "no dtype that a quantized model computes"),
    "disk": (
        lambda folder: read(folder, device_map={"": "disk"}, offload_folder=folder / "off"),
        "device_map puts a part of the model on disk",
    ),
    "schema": (lambda folder: read(changed(folder, schema=9)), "has schema 9, this version of segquant reads 2"),
    "layers": (lambda folder: read(changed(folder, layouts=[])), "cannot be read"),
    "missing": (lambda folder: read(without_tensor(folder)), r"lacks proj_out\.bias"),
    "truncated": (lambda folder: read(truncated(folder)), "is damaged"),
    "no method": (lambda _: SegQuantConfig(), "names a method"),
    "word": (lambda _: SegQuantConfig("rtn", alhpa=1), "takes no alhpa"),
    "text encoder": (
        lambda _: diffusers.PipelineQuantizationConfig("segquant", {"method": "rtn"})._resolve_quant_config(False),
        r"components_to_quantize=\['transformer'\]",
    ),
    "pickle, by position": (
        lambda folder: read(folder).save_pretrained(folder / "x", True, None, False),
        "safetensors alone",
    ),
    "same folder": (lambda folder: read(folder).save_pretrained(folder), "holds what save_quantized wrote"),
    "load_quantized": (lambda folder: segquant.load_quantized(pretrained(folder)), "written by save_pretrained"),
    "pickle": (lambda folder: read(folder).save_pretrained(folder, safe_serialization=False), "safetensors alone"),
}


def pretrained(folder: Path) -> Path:
    read(folder).save_pretrained(folder / "other")
    return folder / "other"


def changed(folder: Path, **values: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"].update(values)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def without_tensor(folder: Path) -> Path:
    from safetensors.torch import load_file, save_file

    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    names = json.loads(index.read_text())
    del names["weight_map"]["proj_out.bias"]
    index.write_text(json.dumps(names))
    tensors = load_file(folder / "quantized.safetensors")
    del tensors["proj_out.bias"]
    save_file(tensors, folder / "quantized.safetensors")
    return folder


def truncated(folder: Path) -> Path:
    file = folder / "quantized.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return folder


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case: str, model: nn.Module, tmp_path: Path) -> None:
    segquant.save_quantized(model, tmp_path / "model")
    act, told = BAD[case]
    with pytest.raises(QuantizationError, match=told):
        act(tmp_path / "model")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, model: nn.Module, tmp_path: Path) -> None:
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "torchao.quantization", None)
        with pytest.raises(QuantizationError, match="export_torchao needs diffusers>=0.42 and torchao>=0.16"):
            segquant.export_torchao(model, tmp_path / "ao")
    for name in [name for name in sys.modules if name.startswith("segquant.deploy.diffusers")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(segquant.deploy, "diffusers")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match="a plug-in of diffusers, which is not installed here; run pip install"):
        importlib.import_module("segquant.deploy.diffusers")


def test_adapters_do_not_fit_folded_smoothing(tmp_path: Path) -> None:
    model = small()
    method = presets.smoothquant("w8a8_dynamic", alpha=0.5, smoothing="fold")
    segquant.save_quantized(segquant.quantize_(model, method, [inputs(1)]), tmp_path / "m")
    again = diffusers.SD3Transformer2DModel.from_pretrained(tmp_path / "m")
    assert torch.equal(out(again), out(model))
    for found in (model, again, segquant.load_quantized(tmp_path / "m")):
        with pytest.raises(QuantizationError, match=r"adapter \(LoRA\) does not fit .*smoothing='layer'"):
            found.load_lora_adapter({})
