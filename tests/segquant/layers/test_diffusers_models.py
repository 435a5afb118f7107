"""What diffusers asks of its models and does to them, once they are quantized."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import segquant
from segquant import QuantizationError, QuantLinear, presets

diffusers = pytest.importorskip("diffusers")
METHOD = presets.rtn("w8a8_dynamic")


@pytest.fixture(scope="module")
def float_model() -> nn.Module:
    torch.manual_seed(0)
    return diffusers.SD3Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=32, out_channels=4,
        pos_embed_max_size=4,
    ).eval().to(torch.bfloat16)  # fmt: skip


@pytest.fixture
def model(float_model: nn.Module) -> nn.Module:
    return segquant.quantize_(copy.deepcopy(float_model), METHOD, [inputs()])


def inputs() -> dict[str, object]:
    g = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(2, 4, 4, 4, generator=g).bfloat16(),
        "encoder_hidden_states": torch.randn(2, 3, 32, generator=g).bfloat16(),
        "pooled_projections": torch.randn(2, 32, generator=g).bfloat16(),
        "timestep": torch.tensor([10.0, 700.0]),
        "return_dict": False,
    }


def out(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(**inputs())[0]


def test_dtype_device_and_counts(model: nn.Module, float_model: nn.Module) -> None:
    assert model.dtype == float_model.dtype == torch.bfloat16 and model.device == float_model.device
    assert model.half().dtype == torch.float16 and model.to(torch.float32).dtype == torch.float32
    left = sum(p.numel() for name, p in model.named_parameters() if not name.endswith("float_like"))
    assert model.num_parameters() == left < float_model.num_parameters()
    assert model.get_memory_footprint() < float_model.get_memory_footprint()


def test_a_moving_average_of_what_is_left(model: nn.Module) -> None:
    from diffusers.training_utils import EMAModel

    before, average = out(model), EMAModel(model.parameters())
    average.step(model.parameters())
    average.copy_to(model.parameters())
    assert torch.equal(out(model), before)


def test_projections_are_fused_before_and_not_after(model: nn.Module, float_model: nn.Module) -> None:
    before = out(model)
    with pytest.raises(QuantizationError, match="fuse before quantize_"):
        model.fuse_qkv_projections()
    assert torch.equal(out(model), before) and not hasattr(model.transformer_blocks[0].attn, "to_qkv")
    fused = copy.deepcopy(float_model)
    fused.fuse_qkv_projections()
    exact = out(fused)
    segquant.quantize_(fused, presets.rtn("w8a8_tensor", on_uncalled="skip"), [inputs()])
    attention = fused.transformer_blocks[0].attn
    assert isinstance(attention.to_qkv, QuantLinear) and type(attention.to_q) is nn.Linear
    assert (out(fused) - exact).norm() < 0.1 * exact.norm()


def test_attention_processors_are_exchanged(model: nn.Module) -> None:
    before = out(model)
    model.set_attn_processor(diffusers.models.attention_processor.JointAttnProcessor2_0())
    assert torch.equal(out(model), before)


def test_adapters_of_diffusers(model: nn.Module) -> None:
    peft = pytest.importorskip("peft")
    plain = out(model)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_out.0"], init_lora_weights=False)
    model.add_adapter(config)
    adapted = out(model)
    assert not torch.equal(adapted, plain)
    model.disable_adapters()
    assert torch.equal(out(model), plain)
    model.enable_adapters()
    for scale in (1.0, 0.5):  # which diffusers writes to the first adapters before it fuses them
        with pytest.raises(
            QuantizationError, match=r"fuse_lora would add .* of transformer_blocks\.0\.\S+ and \d more"
        ):
            model.fuse_lora(lora_scale=scale)
        assert torch.equal(out(model), adapted)
    model.unload_lora()
    assert torch.equal(out(model), plain) and isinstance(model.transformer_blocks[0].attn.to_q, QuantLinear)


def test_nothing_is_saved_that_loads_with_random_weights(untaught: None, model: nn.Module, tmp_path: Path) -> None:
    pipeline = diffusers.DiTPipeline(model, None, diffusers.DDIMScheduler())
    for saved in (model, pipeline, torch.compile(model, backend="eager"), copy.deepcopy(model)):
        with pytest.raises(QuantizationError, match=r"segquant.save_quantized\(model, directory\)"):
            saved.save_pretrained(tmp_path / "saved")
    assert not list(tmp_path.rglob("*.safetensors"))
