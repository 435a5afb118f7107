"""Layers and data that break careless code: each works, or is refused in a sentence that names the layer."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segquant import QuantizationError, QuantLinear, Segments, observe, presets, quantize_
from segquant.method.spec import Method
from segquant.optimizers.headroom import MARGINS
from tests.segquant.support import Block, block_batches, brute_force, tensor

METHODS = [
    presets.rtn("w8a8_tensor"),
    presets.percentile("w8a8"),
    presets.mse("w8a8"),
    presets.smoothquant("w8a8"),
    presets.smoothquant("w8a8_dynamic", alpha=0.9),
    presets.awq("w4a8"),
    presets.quarot("w4a8"),
    presets.ptq4dit("w8a8"),
    presets.gptq("w8a8_tensor"),
    presets.svdquant("w4a8", rank=2),
    presets.segquant_a("w8a8_tensor", alpha=0.5, headroom="search"),
    presets.segquant_plus("w8a8"),
    presets.segquant_g("w4a8", rank=2),
]
# 8 bits cost about 1.2 % here, and with six calls static scales may have the widest headroom
LIMIT = {8: 0.0125 * MARGINS[-1], 4: 0.2}
every_method = pytest.mark.parametrize("method", METHODS, ids=[f"{m.name}-{i}" for i, m in enumerate(METHODS)])


class Single(nn.Module):
    """One linear behind a SiLU."""

    def __init__(self, width: int = 64, out: int = 32) -> None:
        super().__init__()
        self.layer = nn.Linear(width, out)
        with torch.no_grad():
            self.layer.weight.copy_(tensor(out, width, seed=7) / math.sqrt(width))
            self.layer.bias.copy_(tensor(out, seed=8))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def quantized(
    method: Method, batches: list[tuple[Tensor]], segments: Segments | None = None, **sizes: int
) -> tuple[Single, QuantLinear]:
    model = Single(**sizes)
    found = quantize_(copy.deepcopy(model), method, batches, {"layer": segments or Segments()})
    assert isinstance(found.layer, QuantLinear)
    return model, found.layer


def error(model: Single, layer: QuantLinear, x: Tensor) -> float:
    """Relative error of the output without the bias, which no quantizer touches."""
    with torch.no_grad():
        exact = model(x) - model.layer.bias
        found = layer(x) - layer.bias
    assert bool(torch.isfinite(found).all())
    return float((found - exact).norm() / exact.norm())


@every_method
@pytest.mark.parametrize("segments", [Segments(output=(1, 31)), Segments(input=(1, 63), output=(30, 1, 1))])
def test_segments_of_one_channel(method: Method, segments: Segments) -> None:
    batches = [(tensor(8, 64, seed=s),) for s in range(6)]
    model, layer = quantized(method, batches, segments)
    fresh = tensor(16, 64, seed=99)
    assert error(model, layer, fresh) < LIMIT[method.scheme.weight.bits]
    if not method.rotation:
        torch.testing.assert_close(layer(fresh).double(), brute_force(layer, fresh), rtol=1e-3, atol=1e-3)


@every_method
def test_channels_that_calibration_never_saw(method: Method) -> None:
    dead = torch.ones(64)
    dead[[0, 5, 40]] = 0
    model, layer = quantized(method, [(tensor(8, 64, seed=s) * dead,) for s in range(6)])
    assert error(model, layer, tensor(16, 64, seed=99) * dead) < LIMIT[method.scheme.weight.bits]
    # woken up they may at most be lost, which costs their share of the output, √(3/64)
    assert error(model, layer, tensor(16, 64, seed=99)) < 0.3


@every_method
@pytest.mark.parametrize("value", [0.0, 3.0, -1e-6])
def test_constant_inputs(method: Method, value: float) -> None:
    batches = [(torch.full((4, 64), value),) for _ in range(5)]
    model, layer = quantized(method, batches)
    if value:
        assert error(model, layer, batches[0][0]) < (0.03 if method.scheme.weight.bits == 8 else 0.3)
    else:
        assert torch.equal(layer(batches[0][0]), model(batches[0][0])), "zero has a code of its own"
    assert bool(torch.isfinite(layer(tensor(4, 64))).all())


@every_method
def test_dead_weights(method: Method) -> None:
    model = Single()
    with torch.no_grad():
        model.layer.weight[:, :7] = 0
        model.layer.weight[3:5] = 0
    found = quantize_(copy.deepcopy(model), method, [(tensor(8, 64, seed=s),) for s in range(5)], {})
    fresh = tensor(16, 64, seed=99)
    assert error(model, found.layer, fresh) < LIMIT[method.scheme.weight.bits]
    with torch.no_grad():
        model.layer.weight.zero_()
    found = quantize_(copy.deepcopy(model), method, [(tensor(8, 64, seed=s),) for s in range(5)], {})
    torch.testing.assert_close(found(fresh), model(fresh))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", [presets.rtn("w8a8"), presets.gptq("w4a8"), presets.segquant_g("w8a8")])
def test_calibration_data_with_nan_or_inf(method: Method, bad: float) -> None:
    batches = block_batches(6, seed=1)
    batches[4]["x"][1, 3, 2] = bad
    model = Block()
    with pytest.raises(QuantizationError, match=r"(up|out): its calibration inputs contain NaN or inf"):
        quantize_(model, method, batches, {})
    assert all(isinstance(child, nn.Linear) for child in model.children())


def test_values_that_overflow_when_squared() -> None:
    model = Single().bfloat16()
    batches = [(tensor(8, 64, seed=s).bfloat16() * (1e30 if s == 2 else 1),) for s in range(5)]
    with pytest.raises(QuantizationError, match=r"layer: .*overflow when squared.*check the model's dtype"):
        quantize_(model, presets.rtn("w8a8"), batches, {})


@every_method
def test_bfloat16_values_beyond_the_range_of_float16(method: Method) -> None:
    model = Single().bfloat16()
    with torch.no_grad():
        model.layer.weight *= 1e6
    batches = [(tensor(8, 64, seed=s).bfloat16() * 1e7,) for s in range(6)]
    found = quantize_(copy.deepcopy(model), method, batches, {})
    out = found(batches[0][0])
    assert out.dtype == torch.bfloat16
    assert error(model, found.layer, batches[0][0]) < (0.05 if method.scheme.weight.bits == 8 else 0.2)


@pytest.mark.parametrize("precision, side", [("w4a8", "weight groups of 32"), ("w4a4", "weight groups of 64")])
def test_groups_that_do_not_divide_the_width(precision: str, side: str) -> None:
    model = Block(width=40)
    batches = block_batches(2, seed=1, width=40)
    with pytest.raises(QuantizationError, match=rf"ada: {side} do not divide its in_features 40; leave it out"):
        quantize_(model, presets.rtn(precision), batches, {})
    assert all(isinstance(child, nn.Linear) for child in model.children())


def test_groups_that_do_not_divide_a_segment_leave_the_input_whole() -> None:
    segments = Segments(input=(40, 24))
    _, layer = quantized(presets.segquant_a("w4a8", rank=2), [(tensor(8, 64, seed=s),) for s in range(5)], segments)
    assert layer.layout.columns == (64,)
    _, layer = quantized(presets.segquant_a("w8a8"), [(tensor(8, 64, seed=s),) for s in range(5)], segments)
    assert layer.layout.columns == (40, 24)


def test_segments_that_do_not_fit() -> None:
    with pytest.raises(QuantizationError, match="layer: its segments do not fit"):
        quantized(presets.segquant_a("w8a8"), [(tensor(8, 64),)], Segments(output=(16, 17)))


def test_rank_larger_than_the_layer() -> None:
    with pytest.raises(QuantizationError, match=r"layer: rank 33 is larger than the layer, 64 -> 32; .* at most 32"):
        quantized(presets.svdquant("w4a8", rank=33, alpha=0.5), [(tensor(8, 64, seed=s),) for s in range(5)])
    model, layer = quantized(presets.svdquant("w4a8", rank=32, alpha=0.5), [(tensor(8, 64, seed=s),) for s in range(5)])
    assert layer.layout.transform("low_rank").ranks == (32,) and error(model, layer, tensor(9, 64)) < 0.02


class Odd(nn.Module):
    """A linear called twice, one under two names, one never called."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.shared, self.never = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.again = self.shared

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.shared(5 * self.twice(self.twice(x))))


def test_linears_called_twice_shared_or_never(caplog: pytest.LogCaptureFixture) -> None:
    batches = [(tensor(4, 32, seed=s),) for s in range(5)]
    stats = observe(Odd(), batches)
    assert {name: entry.rows for name, entry in stats.items()} == {"twice": 40, "shared": 40, "never": 0}
    for method in (presets.rtn("w8a8"), presets.segquant_g("w8a8")):
        model = Odd()
        with pytest.raises(QuantizationError, match="calibration never called never; leave them out with `skip`"):
            quantize_(model, method, batches, {})
        assert isinstance(model.twice, nn.Linear)
    skipping: dict[str, Any] = {"on_uncalled": "skip"}
    quantize_(model, presets.segquant_g("w8a8", **skipping), batches, {})
    assert isinstance(model.never, nn.Linear) and "never" in caplog.text
    assert isinstance(model.twice, QuantLinear) and model.shared is model.again
    # one scale for both uses: that of the larger input
    assert float(model.shared.input_scale) > 0
    quantize_(Odd(), presets.rtn("w8a8", skip=["never"]), batches, {})
    for skip in (["nevr"], ["never", "twice.*"]):
        with pytest.raises(QuantizationError, match=r"skip '(nevr|twice\.\*)' matches none of the model's \d layers"):
            quantize_(Odd(), presets.rtn("w8a8", skip=skip), batches, {})


@pytest.mark.parametrize("batches", [[], iter(())])
def test_no_data(batches: Any) -> None:
    with pytest.raises(QuantizationError, match="there are no calibration batches; give at least one"):
        quantize_(Single(), presets.rtn("w8a8"), batches)


class _Tanh(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).tanh()


class _Causal(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input.flip(-1), weight, bias)


def _hooked() -> nn.Module:
    layer = nn.Linear(64, 32)
    layer.register_forward_hook(lambda module, args, output: 100 * output)
    return layer


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (_Tanh(64, 32), r"layer '0' \(_Tanh\) has a forward of its own.*skip=\['0'\]"),
        (_Causal(64, 32, 1), r"layer '0' \(_Causal\) has a forward of its own"),
        (_hooked(), r"layer '0' \(Linear\) has forward hooks"),
        (nn.utils.weight_norm(nn.Linear(64, 32)), "has forward hooks"),
    ],
    ids=["forward", "convolution", "hook", "weight_norm"],
)
def test_layers_that_do_more_than_their_class_are_refused(layer: nn.Module, words: str) -> None:
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(32, 32) if isinstance(layer, nn.Linear) else nn.Conv2d(32, 8, 1))
    inputs = [(tensor(*([2, 64] if isinstance(layer, nn.Linear) else [2, 64, 4, 4])),)]
    for name in ("rtn", "gptq"):
        with pytest.raises(QuantizationError, match=words):
            quantize_(model, getattr(presets, name)("w8a8", convolutions=True), inputs)
    found = quantize_(model, presets.rtn("w8a8", convolutions=True, skip=["0"]), inputs)
    assert found[0] is layer and type(found[2]).__name__.startswith("Quant")


def test_a_parametrized_weight_is_the_weight() -> None:
    """The way that replaced weight_norm's hooks: the weight is what it computes."""
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(64, 32))).eval()
    x = tensor(16, 64)
    found = quantize_(copy.deepcopy(model), presets.rtn("w8a8"), [(x,)])
    with torch.no_grad():
        assert 0 < (found(x) - model(x)).norm() < 0.02 * model(x).norm()
