"""torchao folders, ComfyUI checkpoints: their own code runs our layers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import segquant
from segquant import QuantizationError, QuantLinear, QuantScheme, QuantSpec, presets
from segquant.deploy.comfy_names import Place, places, tensor_name
from segquant.deploy.plain import why_not_plain
from tests.segquant.support import BLOCK_SEGMENTS, Block, block_batches

pytest.importorskip("diffusers")
from tests.segquant.deploy.tiny import inputs, out, small

BATCHES = [inputs(1), inputs(2)]
STATIC = presets.smoothquant("w8a8_tensor", alpha=0.5)
SEGQUANT = presets.segquant_a("w8a8_tensor", alpha=0.5)


@pytest.fixture(scope="module")
def float_model() -> nn.Module:
    return small()


def quantized(model: nn.Module, method: Any) -> nn.Module:
    return segquant.quantize_(copy.deepcopy(model), method, BATCHES)


def linears(model: nn.Module) -> dict[str, QuantLinear]:
    return {name: m for name, m in model.named_modules() if type(m) is QuantLinear}


def error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def per_layer(ours: nn.Module, theirs: nn.Module) -> list[float]:
    """Errors of their layers against ours on our inputs."""
    seen: dict[str, Tensor] = {}
    for name, layer in linears(ours).items():
        layer.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0]))
    out(ours)
    with torch.no_grad():
        return [error(theirs.get_submodule(n)(x), ours.get_submodule(n)(x)) for n, x in seen.items()]


TOKEN = QuantSpec("int8", "token", dynamic=True)
WHOLE = {"*.linear": {"seglinear": False}}
"""The norms' layers, whose pieces of the output would have inputs of their own."""
FOR_TORCHAO = {
    "dynamic": presets.rtn("w8a8_dynamic"),
    "static": STATIC,
    "zero point": presets.segquant_a("w8a8_tensor", alpha=0.5, deploy="torchao", overrides=WHOLE),
    "narrow": presets.rtn(QuantScheme(QuantSpec("int5", "channel", scale_dtype="bfloat16"), TOKEN)),
    "zero points of both": presets.rtn(QuantScheme(QuantSpec("uint7", "channel"), QuantSpec("uint8")), overrides=WHOLE),
    "zero point per token": presets.segquant_a("w8a8_dynamic", alpha=0.5, deploy="torchao", overrides=WHOLE),
}


@pytest.mark.parametrize("method", FOR_TORCHAO.values(), ids=FOR_TORCHAO)
def test_torchao_runs_every_layer(float_model: nn.Module, tmp_path: Path, method: Any) -> None:
    torchao = pytest.importorskip("torchao")
    model = quantized(float_model, method)
    zeros = [name for name, layer in linears(model).items() if layer.layout.input_grid.zero_point]
    assert bool(zeros) == (method.cuts.negative == "zero_point" or method.scheme.input.zero_point)
    report = segquant.export_torchao(model, tmp_path / "ao", inputs(1))
    assert {row.form for row in report.layers} == {"int8"} and len(report.layers) == len(linears(model))
    found = type(float_model).from_pretrained(tmp_path / "ao", torch_dtype=torch.float32)
    assert isinstance(found.proj_out.weight, torchao.quantization.Int8Tensor)
    dynamic = method.scheme.input.dynamic  # torchao divides by 127.5
    assert max(per_layer(model, found)) < (0.01 if dynamic else 1e-5)
    exact = out(float_model)
    assert error(out(found), exact) < 1.3 * error(out(model), exact)
    half = type(float_model).from_pretrained(tmp_path / "ao", torch_dtype=torch.bfloat16)
    assert half.proj_out.bias.dtype == torch.bfloat16 and error(out(half).float(), exact) < 2 * error(out(model), exact)
    saved, codes = (tmp_path / "ao" / "diffusion_pytorch_model.safetensors").stat().st_size, report.layers
    assert sum(row.bytes for row in codes) < saved < 0.5 * float_model.get_memory_footprint()
    assert "layers in int8, 0 in float (0 of" in str(report)


def test_torchao_refuses_or_keeps_in_float(float_model: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    model = quantized(float_model, SEGQUANT)
    with pytest.raises(QuantizationError, match=r"torchao cannot hold .*DualScale takes two products.* and \d+ more"):
        segquant.export_torchao(model, tmp_path / "ao", inputs(1))
    with pytest.raises(QuantizationError, match="static scales, whose shape in a file is .*; give batch="):
        segquant.export_torchao(model, tmp_path / "ao", rest="float")
    with pytest.raises(QuantizationError, match="rest='drop'"):
        segquant.export_torchao(model, tmp_path / "ao", rest="drop")
    with pytest.raises(QuantizationError, match="a quantized model of diffusers"):
        segquant.export_torchao(float_model, tmp_path / "ao")
    assert not (tmp_path / "ao").exists()
    report = segquant.export_torchao(model, tmp_path / "ao", inputs(1), rest="float")
    floats = [row for row in report.layers if row.form == "float"]
    assert floats and report.float_bytes == sum(4 * model.get_submodule(r.layer).weight.numel() for r in floats)
    found = type(float_model).from_pretrained(tmp_path / "ao", torch_dtype=torch.float32)
    exact = out(float_model)
    assert type(found.get_submodule(floats[0].layer).weight.data) is Tensor
    assert error(out(found), exact) < 1.3 * error(out(model), exact)


@pytest.mark.parametrize(("dtype", "note"), [("int8", ""), ("int6", "weights of int6 as int8")])
def test_comfyui_runs_every_layer(float_model: nn.Module, tmp_path: Path, dtype: str, note: str) -> None:
    tensor = pytest.importorskip("comfy_kitchen").tensor
    model = quantized(float_model, presets.rtn(QuantScheme(QuantSpec(dtype, "channel"), TOKEN)))
    report = segquant.export_comfy(model, tmp_path / "c.safetensors", names="diffusers")
    tensors = load_file(tmp_path / "c.safetensors")
    theirs = copy.deepcopy(float_model)
    for row in report.layers:
        assert json.loads(bytes(tensors[f"{row.layer}.comfy_quant"].tolist())) == {"format": "int8_tensorwise"}
        codes, scale = tensors[f"{row.layer}.weight"], tensors[f"{row.layer}.weight_scale"]
        params = tensor.TensorWiseINT8Layout.Params(
            scale=scale, orig_dtype=torch.float32, orig_shape=tuple(codes.shape)
        )
        weight = tensor.QuantizedTensor(codes, "TensorWiseINT8Layout", params)
        theirs.get_submodule(row.layer).weight = nn.Parameter(weight, requires_grad=False)
    errors = sorted(per_layer(model, theirs))  # a tie may fall to the other side
    assert {row.note for row in report.layers} == {note} and errors[len(errors) // 2] < 1e-6 and errors[-1] < 0.01


NOT_PLAIN = {
    "fp8": "its weights are fp8; int8 is the nearest",
    "mxfp4": "its weights are fp4_e2m1; int4 is the nearest",
    "w8a8_asym": "its weights are uint8; int8 is the nearest",
    "q5_1": "its weights are uint5; int5 is the nearest",
    "w6a6": "its input is int6; int8 is the nearest",
    "mxint8": "its input's scales are e8m0; float32 is the nearest",
    "w4a8": "it has scales by groups",
    "w8a16": "its input stays in float",
}


@pytest.mark.parametrize("precision", NOT_PLAIN)
def test_formats_that_other_tools_have_not_are_named(precision: str) -> None:
    (layer,) = segquant.quantize_(nn.Sequential(nn.Linear(32, 8)), presets.rtn(precision), [(torch.ones(2, 32),)], {})
    assert why_not_plain(layer) == NOT_PLAIN[precision]


def test_comfyui_holds_smoothing_that_is_folded(float_model: nn.Module, tmp_path: Path) -> None:
    model = quantized(float_model, presets.smoothquant("w8a8_dynamic", alpha=0.5, deploy="comfy"))
    report = segquant.export_comfy(model, tmp_path / "c.safetensors", names="diffusers")
    assert {row.form for row in report.layers} == {"int8"}
    tensors, theirs = load_file(tmp_path / "c.safetensors"), copy.deepcopy(float_model)
    theirs.load_state_dict(
        {
            key: t * tensors[f"{key}_scale"] if f"{key}_scale" in tensors else t
            for key, t in tensors.items()
            if not key.endswith(("_scale", ".comfy_quant"))
        }
    )
    for layer in theirs.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(lambda _, args: (per_token(args[0]),))
    folded = [layer for layer in linears(model).values() if layer.layout.folded]
    assert len(folded) == 8 and error(out(theirs), out(model)) < 0.01
    divided = segquant.layer_errors(float_model, model, BATCHES)
    assert max(divided.values()) < 0.03, "against the float layers, though their inputs come divided"


def per_token(x: Tensor) -> Tensor:
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round() * scale


def test_comfyui_finds_its_names(float_model: nn.Module, tmp_path: Path) -> None:
    model = quantized(float_model, presets.rtn("w8a8_dynamic", skip=("transformer_blocks.0.attn.add_k_proj",)))
    with pytest.raises(QuantizationError, match="fuses it with transformer_blocks.0.attn.add_k_proj, which is float"):
        segquant.export_comfy(model, tmp_path / "c.safetensors")
    report = segquant.export_comfy(model, tmp_path / "c.safetensors", rest="float", prefix="model.diffusion_model.")
    found = {key.removeprefix("model.diffusion_model."): t for key, t in load_file(tmp_path / "c.safetensors").items()}
    modules = {key.rpartition(".")[0] for key in found} - {""}
    block = "joint_blocks.0."
    assert "pos_embed" in found and modules == {
        "x_embedder.proj", "context_embedder", "t_embedder.mlp.0", "t_embedder.mlp.2", "y_embedder.mlp.0",
        "y_embedder.mlp.2", "final_layer.adaLN_modulation.1", "final_layer.linear",
        *(block + "x_block." + n for n in ("adaLN_modulation.1", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
        *(block + "context_block." + n for n in ("adaLN_modulation.1", "attn.qkv")),
    }  # fmt: skip
    fused, attention = found[block + "x_block.attn.qkv.weight"], model.transformer_blocks[0].attn
    assert torch.equal(fused, torch.cat([attention.to_q.codes, attention.to_k.codes, attention.to_v.codes]))
    assert found[block + "x_block.attn.qkv.weight_scale"].shape == (96, 1)
    assert found[block + "context_block.attn.qkv.weight"].dtype == torch.float32
    scale, shift = model.norm_out.linear.codes.chunk(2)
    assert torch.equal(found["final_layer.adaLN_modulation.1.weight"], torch.cat([shift, scale]))
    assert sum(row.form == "float" for row in report.layers) == 2


def test_comfyui_finds_the_names_of_flux() -> None:
    import diffusers

    with torch.device("meta"):
        model = diffusers.FluxTransformer2DModel(
            in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(2, 2, 4), guidance_embeds=True,
        )  # fmt: skip
    found = places(model)
    assert found["single_transformer_blocks.0.proj_mlp"] == Place("single_blocks.0.linear1", 3)
    assert found["transformer_blocks.0.attn.add_v_proj"] == Place("double_blocks.0.txt_attn.qkv", 2)
    assert found["norm_out.linear"] == Place("final_layer.adaLN_modulation.1", None, True)
    both = "attn.qkv", "attn.proj", "attn.norm.query_norm", "attn.norm.key_norm", "mlp.0", "mlp.2", "mod.lin"
    assert {place.module for place in found.values()} == {
        "img_in", "txt_in", "final_layer.linear", "final_layer.adaLN_modulation.1",
        *(f"{part}_in.{layer}_layer" for part in ("time", "vector", "guidance") for layer in ("in", "out")),
        *(f"double_blocks.0.{side}_{name}" for side in ("img", "txt") for name in both),
        *(f"single_blocks.0.{n}" for n in ("linear1", "linear2", "modulation.lin", "norm.query_norm", "norm.key_norm")),
    }  # fmt: skip
    assert tensor_name(found["transformer_blocks.0.attn.norm_q"], "weight").endswith("query_norm.scale")


def test_comfyui_says_what_it_cannot_hold(float_model: nn.Module, tmp_path: Path) -> None:
    model = quantized(float_model, SEGQUANT)
    with pytest.raises(QuantizationError, match="ComfyUI's int8 format cannot hold .*its input is smoothed"):
        segquant.export_comfy(model, tmp_path / "c.safetensors")
    block = segquant.quantize_(Block(), presets.rtn("w8a8_tensor"), block_batches(2, seed=1), BLOCK_SEGMENTS)
    with pytest.raises(QuantizationError, match="ComfyUI's names for a Block are not known here, only for SD3"):
        segquant.export_comfy(block, tmp_path / "c.safetensors")
    report = segquant.export_comfy(block, tmp_path / "c.safetensors", names="diffusers")
    assert {row.note for row in report.layers} == {"inputs per token instead of one scale per tensor, static"}
    with pytest.raises(QuantizationError, match="names='a1111'"):
        segquant.export_comfy(block, tmp_path / "c.safetensors", names="a1111")
    with pytest.raises(QuantizationError, match="no quantized linear"):
        segquant.export_comfy(Block(), tmp_path / "c.safetensors")


WRITERS: dict[str, Any] = {
    "export_torchao": lambda model, path: segquant.export_torchao(model, path, inputs(1), rest="float"),
    "export_comfy": lambda model, path: segquant.export_comfy(model, path, rest="float"),
    "export_comfy, own names": lambda model, path: segquant.export_comfy(model, path, rest="float", names="diffusers"),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("beside", ["to_q", "proj_out"])
def test_adapters_are_refused_before_a_file_is_written(
    float_model: nn.Module, tmp_path: Path, writer: str, beside: str
) -> None:
    """Beside a quantized layer and beside one in float."""
    peft = pytest.importorskip("peft")
    pytest.importorskip("torchao")
    model = quantized(float_model, presets.rtn("w8a8_tensor", skip=("proj_out",)))
    model.add_adapter(peft.LoraConfig(r=2, target_modules=[beside]))
    told = f"{beside} has an adapter, which {writer.partition(',')[0]} does not write; .*unload_lora_weights"
    with pytest.raises(QuantizationError, match=told):
        WRITERS[writer](model, tmp_path / "file")
    assert not list(tmp_path.iterdir())
