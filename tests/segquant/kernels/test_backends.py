"""What a backend packs is dropped whenever the layer's tensors change, move or are copied."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import torch

import segquant
from segquant import QuantizationError, QuantLinear, presets
from segquant.kernels.cpu.build import why_unavailable
from segquant.kernels.cpu.operators import why_not_exact
from segquant.layers import packs
from segquant.modules import memory
from segquant.numerics.fake_quant import dequantize_weight
from segquant.transforms.chain import undo_all
from tests.segquant.support import BLOCK_SEGMENTS, Block, block_batches, brute_force, tensor


def quantized(precision: str = "w4a8") -> Block:
    model = Block()
    segquant.quantize_(
        model, presets.segquant_g(precision, rank=2, alpha=0.5), block_batches(5, seed=1), BLOCK_SEGMENTS
    )
    return model


def test_packed_tensors_are_dropped_and_made_again() -> None:
    model, x = quantized(), tensor(3, 32)
    layer: QuantLinear = model.up
    expected = layer(x)
    assert layer._packed is not None and torch.equal(layer(x), expected)
    twin = copy.deepcopy(layer)
    assert twin._packed is None and torch.equal(twin(x), expected)
    saved = io.BytesIO()
    torch.save(model, saved)
    assert saved.getbuffer().nbytes < sum(2 * child.weight_bytes() for child in model.children()) + 2**16
    saved.seek(0)
    back = torch.load(saved, weights_only=False).up
    assert back._packed is None and torch.equal(back(x), expected)
    layer.to(torch.float32)
    assert layer._packed is None and torch.equal(layer(x), expected)
    state = layer.state_dict()
    layer.load_state_dict({**state, "weight_scale": state["weight_scale"] * 2})
    assert layer._packed is None and not torch.equal(layer(x), expected)
    layer.load_state_dict({**state, "weight_scale": state["weight_scale"] / 2})
    layer.weight_scale = layer.weight_scale * 3
    assert layer._packed is None
    layer.forget_packed()
    layer.keep_packed = False
    layer(x)
    assert layer._packed is None


@pytest.mark.parametrize("precision", ["w8a8_tensor", "w4a8", "fp8"])
def test_the_weight_property_is_the_codes_with_transforms_undone(precision: str) -> None:
    """Inputs left alone, the layer is its weight; and the weight is what undoing the chain gives."""
    model = quantized(precision)
    for layer in model.children():
        tensors, layout = layer.tensors(), layer.layout
        expected = torch.cat(undo_all(layout, tensors, dequantize_weight(layout, tensors)))
        assert torch.equal(layer.weight, expected)
        x = tensor(5, layer.in_features)
        assert (layer(x) - brute_force(layer, x)).abs().max() < 1e-3 * layer(x).abs().max()


def test_models_saved_by_the_first_version_load_bit_for_bit(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from torch import nn

    class Tiny(nn.Module):
        """As it was: a convolution, a rotated linear in two segments, one with a scale per sign; int4, low rank."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.up, self.down = nn.Conv2d(4, 4, 2), nn.Linear(16, 12), nn.Linear(12, 16, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.up(self.conv(x).flatten(2).transpose(1, 2).reshape(x.shape[0], -1, 16))
            return self.down(nn.functional.silu(h))

    folder = Path(__file__).parents[1] / "saved_v1"
    model, case = segquant.load_quantized(folder, Tiny()), load_file(folder / "expected.safetensors")
    with torch.no_grad():
        assert torch.equal(model(case["x"]), case["y"])
    outcome = segquant.read_outcome(folder)
    assert outcome is not None and outcome.method.value("rank") == 2 and outcome.method.ranges.name == "mse"
    assert outcome.segments["up"].output == (4, 8)
    segquant.save_quantized(model, tmp_path / "again", outcome)
    again = segquant.load_quantized(tmp_path / "again", Tiny())
    assert torch.equal(again(case["x"]), case["y"]) and segquant.read_outcome(tmp_path / "again") == outcome


def test_a_models_class_is_a_module_of_the_closed_list(tmp_path: Path) -> None:
    model = quantized()
    segquant.save_quantized(model, tmp_path / "model")
    manifest = tmp_path / "model" / "quantized.json"
    text = manifest.read_text().replace('"config": null', '"config": {}')
    for module, name in (("torch.nn.functional", "linear"), ("torch.nn", "nothing"), ("torch.nn.nowhere", "Linear")):
        changed = text.replace(Block.__module__, module).replace('"name": "Block"', f'"name": "{name}"')
        manifest.write_text(changed)
        with pytest.raises(QuantizationError, match="is no model class that is known here; pass model="):
            segquant.load_quantized(tmp_path / "model")


@pytest.mark.parametrize("precision", ["w4a8", "fp8", "w4a8_asym", "nvfp4"])
def test_where_memory_is_short_no_float_weight_is_kept(
    precision: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The same bytes, said once; what `keep_packed` says goes before."""
    model, x = quantized(precision), tensor(3, 32)
    layer: QuantLinear = model.up
    expected, size = layer(x), 4 * layer.in_features * layer.out_features
    assert layer._packed is not None and layer._packed.weight.nbytes == size
    layer.forget_packed()
    packs._tell_once.cache_clear()
    for free, kept in ((memory.ROOM * size, True), (memory.ROOM * size - 1, False), (0, False), (None, True)):
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: free)
        assert torch.equal(layer(x), expected) and torch.equal(layer(x), expected)
        assert (layer._packed is not None) == kept
        layer.forget_packed()
    assert [record.message for record in caplog.records] == [
        "memory of the cpu is short: float weights of quantized layers are made at every call, which is slower; "
        "keep_packed=True of a layer keeps its weight"
    ]
    monkeypatch.setattr(memory, "free_bytes", lambda device: 0)
    layer.keep_packed = True
    assert torch.equal(layer(x), expected) and layer._packed is not None


@pytest.mark.skipif(why_not_exact() is not None, reason="the cpu backend does not run here")
def test_what_is_no_float_weight_is_kept_though_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = quantized("w4a8"), tensor(3, 32)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 0)
    segquant.set_backend_(model, "cpu")
    model.up(x)
    assert model.up._packed is not None


def test_arguments_that_say_nothing_are_refused() -> None:
    model = quantized("nvfp4")
    with pytest.raises(QuantizationError, match="falls back to"):
        segquant.set_backend_(model, "auto", fallback="nope")
    with pytest.raises(QuantizationError, match="has no quantized layer"):
        segquant.set_backend_(torch.nn.Linear(4, 4), "auto", strict=True)
    with pytest.raises(QuantizationError, match="leave strict out to run them by 'reference'"):
        segquant.set_backend_(model, "cpu", "reference", strict=True)
    assert "no quantized layer" in str(segquant.set_backend_(torch.nn.Linear(4, 4), "auto"))


def test_products_are_exact_wherever_they_are_compiled() -> None:
    """Else all tests of the `cpu` backend would be skipped."""
    assert why_not_exact() == why_unavailable()
