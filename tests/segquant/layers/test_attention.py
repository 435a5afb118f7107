"""diffusers' attention modules by the CPU's kernel: which take it, and that nothing else changes."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn import functional as nnf

import segquant
from segquant import QuantizationError, presets
from segquant.kernels.cpu import operators
from segquant.kernels.cpu.attention import TORCHS, Functional, KernelAttention, with_functional
from segquant.layers.attention import KernelProcessor, torchs
from tests.segquant.sd3 import random_sd3, sd3_batches
from tests.segquant.support import tensor

REASON = operators.why_not_exact()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"the cpu backend {REASON}")

Call = dict[str, Any]


def sd3() -> tuple[nn.Module, Call]:
    model = random_sd3(2, 2)
    return model, sd3_batches(model, 1, seed=1)[0]


def flux(size: int = 16, seed: int = 0) -> tuple[nn.Module, Call]:
    torch.manual_seed(seed)
    model = diffusers.FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=size, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(size // 4, size // 4, size // 2),
    ).eval()  # fmt: skip
    return model, {
        "hidden_states": tensor(2, 16, 4), "encoder_hidden_states": tensor(2, 5, 8), "pooled_projections": tensor(2, 8),
        "timestep": torch.tensor([0.1, 0.9]), "img_ids": tensor(16, 3), "txt_ids": torch.zeros(5, 3),
        "return_dict": False,
    }  # fmt: skip


def unet() -> tuple[nn.Module, Call]:
    torch.manual_seed(0)
    model = diffusers.UNet2DConditionModel(
        in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2, norm_num_groups=4,
    ).eval()  # fmt: skip
    return model, {"sample": tensor(2, 4, 8, 8), "timestep": torch.tensor(500), "return_dict": False,
                   "encoder_hidden_states": tensor(2, 5, 8)}  # fmt: skip


MODELS: dict[str, Callable[[], tuple[nn.Module, Call]]] = {"sd3": sd3, "flux": flux, "unet": unet}


@torch.no_grad()
def out(model: Any, call: Call) -> Tensor:
    found: Tensor = model(**call)[0]
    return found


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", MODELS)
def test_every_attention_is_the_kernel_s_until_it_is_torch_s_again(kind: str) -> None:
    model, call = MODELS[kind]()
    other = copy.deepcopy(model)
    expected, kinds = out(model, call), {type(each) for each in model.attn_processors.values()}
    for attention, most in (("float", 1e-5), ("int8", 0.03)):
        table = segquant.set_backend_(model, "cpu", attention=attention)
        assert {each.layer for each in table} == {name.removesuffix(".processor") for name in model.attn_processors}
        assert {(each.backend, each.reason) for each in table} == {(f"attention {attention}", TORCHS)}
        found = out(model, call)
        assert not torch.equal(found, expected) and error(found, expected) < most
        assert torch.equal(out(copy.deepcopy(model), call), found)
        assert all(isinstance(each, tuple(kinds)) for each in model.attn_processors.values())
        with torchs(model):
            assert torch.equal(out(model, call), expected)
        assert torch.equal(out(model, call), found)
    assert torch.equal(out(other, call), expected)  # other models of the process go on as before
    assert not segquant.set_backend_(model, "reference").choices
    assert torch.equal(out(model, call), expected)
    assert {type(each) for each in model.attn_processors.values()} == kinds


def test_of_a_quantized_model_and_after_loading(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, call = sd3()
    segquant.quantize_(model, presets.rtn("w8a8"), sd3_batches(model, 2, seed=2))
    segquant.set_backend_(model, "cpu")
    plain = out(model, call)
    table = segquant.set_backend_(model, "auto", attention="int8")
    assert "attention int8" in {each.backend for each in table} and "cpu" in {each.backend for each in table}
    assert "transformer_blocks.*.attn" in capsys.readouterr().out
    found = out(model, call)
    assert 0 < error(found, plain) < 0.03
    segquant.save_quantized(model, tmp_path / "saved")
    loaded = segquant.load_quantized(tmp_path / "saved", backend="cpu")
    assert torch.equal(out(loaded, call), plain)
    loaded = segquant.load_quantized(tmp_path / "saved", backend="cpu", attention="int8")
    assert torch.equal(out(loaded, call), found)


def test_processors_are_pickled_and_keep_their_arguments() -> None:
    model, _ = flux()
    before = model.attn_processors["transformer_blocks.0.attn.processor"]
    before.note = "kept"
    segquant.set_backend_(model, "cpu", attention="int8")
    ours = model.attn_processors["transformer_blocks.0.attn.processor"]
    again = pickle.loads(pickle.dumps(ours))
    assert type(again) is type(ours) and isinstance(again, KernelProcessor) and again.note == "kept"
    segquant.set_backend_(model, "cpu", attention="torch")
    plain = model.attn_processors["transformer_blocks.0.attn.processor"]
    assert type(plain) is type(before) and plain.note == "kept"


def test_the_graph_is_cut_in_the_same_places() -> None:
    model, call = flux()
    before = segquant.find_segments(model, (), call)
    segquant.set_backend_(model, "cpu", attention="int8")
    assert segquant.find_segments(model, (), call) == before


def test_attentions_that_it_cannot_take_are_named() -> None:
    model, call = flux(size=24)
    model.transformer_blocks[0].attn.head_dim = 6  # as it would be
    attention = model.single_transformer_blocks[0].attn
    attention.processor._attention_backend = "flex"
    found = {each.layer: (each.backend, each.reason) for each in segquant.set_backend_(model, "auto", attention="int8")}
    assert found == {
        "transformer_blocks.0.attn": ("attention torch", "takes heads of a multiple of 4 channels, and these have 6"),
        "single_transformer_blocks.0.attn": (
            "attention torch", "its processor runs diffusers' attention backend 'flex'"),
    }  # fmt: skip
    with pytest.raises(
        QuantizationError, match=r"cannot run the attention of transformer_blocks\.0\.attn \(takes heads"
    ):
        segquant.set_backend_(model, "auto", attention="int8", strict=True)
    with pytest.raises(QuantizationError, match="name a fallback"):
        segquant.set_backend_(model, "cpu", attention="int8")
    assert len(segquant.set_backend_(model, "cpu", "reference", attention="int8")) == 2


@pytest.mark.parametrize("kind", MODELS)
def test_processors_find_the_kernel_without_a_mode(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, call = MODELS[kind]()
    functional = Functional(True)
    for processor in model.attn_processors.values():
        assert with_functional(type(processor).__call__, functional) is not None
    segquant.set_backend_(model, "cpu", attention="int8")
    found = out(model, call)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(out(model, call), found)


def test_functions_that_find_attention_otherwise_take_the_mode() -> None:
    def by_name(x: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(x, x, x)

    @functools.wraps(by_name)
    def wrapped(x: Tensor) -> Tensor:
        return by_name(x)

    for function in (by_name, wrapped, functools.partial(by_name), len):
        assert with_functional(function, Functional(True)) is None


class Own(nn.Module):
    """Calls attention itself."""

    def forward(self, x: Tensor) -> Tensor:
        return nnf.scaled_dot_product_attention(x, x, x)


def test_attention_without_a_processor_is_named() -> None:
    model = nn.ModuleDict({"own": Own(), "torch": nn.MultiheadAttention(8, 2)})
    table = segquant.set_backend_(model, "auto", attention="float")
    assert {each.layer: each.reason for each in table} == {
        "own": "Own has no processor, as diffusers' modules have",
        "torch": "MultiheadAttention has no processor, as diffusers' modules have",
    }
    unet_, _ = unet()
    unet_.set_attn_processor(AttnProcessor())
    assert {each.reason for each in segquant.set_backend_(unet_, "auto", attention="float")} == {
        "its processor AttnProcessor does not call F.scaled_dot_product_attention"
    }


def test_attention_is_refused_where_it_means_nothing() -> None:
    model, _ = sd3()
    with pytest.raises(QuantizationError, match="backend 'reference' leaves attention to torch, and attention='int8'"):
        segquant.set_backend_(model, "reference", attention="int8")
    with pytest.raises(QuantizationError, match="Linear has no attention; leave it out"):
        segquant.set_backend_(nn.Linear(2, 2), "auto", attention="int8")
    with pytest.raises(QuantizationError, match="there is no attention 'int4'; "):
        segquant.set_backend_(model, "auto", attention="int4")  # type: ignore[arg-type]


def test_a_way_around_the_kernel_is_an_error() -> None:
    """diffusers' backend of the whole process, set afterwards."""
    model, call = flux()
    segquant.set_backend_(model, "cpu", attention="int8")
    with (
        diffusers.attention_backend("_native_math"),
        pytest.raises(QuantizationError, match="FluxAttnProcessor computed attention without F.scaled_dot"),
    ):
        _around(lambda: out(model, call))


def _around(function: Callable[[], Any]) -> Any:
    """As if diffusers' math backend called something else than F.scaled_dot_product_attention."""
    original = KernelAttention.__torch_function__

    def passing(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nnf.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return original(self, func, types, args, kwargs)

    KernelAttention.__torch_function__ = passing  # type: ignore[method-assign]
    try:
        return function()
    finally:
        KernelAttention.__torch_function__ = original  # type: ignore[method-assign]


def test_compilers_take_a_module() -> None:
    """One graph, no second one for another batch or length, and the same numbers."""
    module: Any = diffusers.models.attention_processor.Attention(16, heads=2, dim_head=8).eval()
    segquant.set_backend_(module, "cpu", attention="int8")
    x, other = tensor(2, 9, 16), tensor(3, 150, 16)
    expected = module(x), module(other)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.no_grad():
        assert torch.equal(compiled(x), expected[0])
        with torch._dynamo.config.patch(error_on_recompile=True):
            assert torch.equal(compiled(other), expected[1])
    program = torch.export.export(module, (x,), strict=False)
    assert "segquant_cpu.attention" in str(program.graph)
    assert torch.equal(program.module()(x), expected[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_compilers_and_exporters_take_it(kind: str) -> None:
    """One graph, no second one for another batch, and the same numbers."""
    model, call = MODELS[kind]()
    segquant.set_backend_(model, "cpu", attention="int8")
    larger = {key: _longer(value) for key, value in call.items()}
    expected = out(model, call), out(model, larger)
    program = torch.export.export(model, (), call, strict=False)
    assert "segquant_cpu.attention" in str(program.graph)
    assert error(out(program.module(), call), expected[0]) < 0.01
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    assert error(out(compiled, call), expected[0]) < 0.01
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert error(out(compiled, larger), expected[1]) < 0.01


def _longer(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.dim() == 0 or value.shape[0] != 2:
        return value
    return torch.cat((value, value[:1]))
