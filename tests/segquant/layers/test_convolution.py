"""Convolutions as linears on patches: against torch's own convolution, and properties of the quantized layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import segquant
from segquant import QuantConv2d, QuantizationError, QuantLinear, Segments, presets
from segquant.method.targets import layer_method, targets
from segquant.modules.layers import as_linear, quantizable
from segquant.modules.window import Window
from segquant.numerics import functional

SHAPES = [
    nn.Conv2d(6, 5, 1),
    nn.Conv2d(6, 5, 3, padding=1),
    nn.Conv2d(6, 5, (3, 2), stride=(2, 1), padding=(0, 1)),
    nn.Conv2d(6, 5, 3, padding="same", dilation=2, bias=False),
    nn.Conv2d(6, 5, 2, padding="same"),
    nn.Conv2d(6, 5, 3, padding=1, padding_mode="reflect"),
    nn.Conv2d(6, 5, 3, padding=2, padding_mode="circular"),
]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("conv", SHAPES, ids=str)
def test_patches_times_weight_is_the_convolution(conv: nn.Conv2d) -> None:
    x = draw(2, 6, 9, 7)
    with torch.no_grad():
        assert torch.allclose(Window.of(conv).apply(as_linear(conv), x), conv(x), atol=1e-5)


def quantize(
    model: nn.Module, method: segquant.Method, inputs: list[tuple[Tensor, ...]], segments: dict[str, Segments]
) -> nn.Module:
    """The model quantized whole, in place."""
    return segquant.quantize_(model, method.changed(convolutions=True), inputs, segments)


def solved(
    conv: nn.Conv2d, method: segquant.Method, inputs: list[Tensor], segments: Segments | None = None
) -> nn.Module:
    return quantize(nn.Sequential(conv), method, [(x,) for x in inputs], {"0": segments} if segments else {})[0]


def error(conv: nn.Conv2d, layer: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        exact = conv(x)
        return float((layer(x) - exact).norm() / exact.norm())


def test_static_8_bits_are_a_convolution_of_fake_quantized_tensors() -> None:
    conv = nn.Conv2d(6, 5, 3, stride=2, padding=1)
    inputs = [draw(2, 6, 8, 8, seed=seed) for seed in range(4)]
    layer = solved(conv, presets.rtn("w8a8_tensor"), inputs)
    assert isinstance(layer, QuantConv2d)
    top = max(float(x.abs().max()) for x in inputs)
    x = draw(1, 6, 8, 8, seed=9)
    rounded = functional.fake_quantize(x, torch.tensor(top / 127), "int8")
    weight = functional.fake_quantize(conv.weight.detach(), conv.weight.detach().abs().max() / 127, "int8")
    expected = nn.functional.conv2d(rounded, weight, conv.bias, stride=2, padding=1)
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_smoothing_is_one_value_per_channel_and_exact_before_rounding() -> None:
    conv = nn.Conv2d(6, 8, 3, padding=1)
    inputs = [draw(2, 6, 8, 8, seed=seed) * torch.tensor([30.0, 1, 1, 1, 1, 0.1])[:, None, None] for seed in range(4)]
    layer = solved(conv, presets.smoothquant("w8a8"), inputs)
    smooth = layer.smooth.view(6, 9)
    assert torch.equal(smooth, smooth[:, :1].expand(-1, 9)) and len(smooth[:, 0].unique()) == 6
    away = (layer.weight - conv.weight.detach()).abs() * layer.smooth.view(6, 3, 3)
    assert bool((away <= 0.501 * layer.weight_scale[:, :, None, None]).all())  # of a step in the smoothed space
    plain = solved(conv, presets.rtn("w8a8"), inputs)
    assert error(conv, layer, inputs[0]) < 0.7 * error(conv, plain, inputs[0])


def correlated(seed: int) -> Tensor:
    """Pictures whose channels are mixtures of few."""
    return torch.einsum("nchw,cd->ndhw", draw(2, 4, 10, 10, seed=seed), draw(4, 16, seed=99)) + 0.1 * draw(
        2, 16, 10, 10, seed=seed + 50
    )


def test_gptq_beats_rounding_where_channels_are_correlated() -> None:
    conv = nn.Conv2d(16, 12, 3, padding=1)
    inputs = [correlated(seed) for seed in range(6)]
    nearest = solved(conv, presets.rtn("w4a8_channel"), inputs)
    better = solved(conv, presets.gptq("w4a8_channel"), inputs)
    fresh = correlated(20)
    assert error(conv, better, fresh) < 0.6 * error(conv, nearest, fresh)


def test_learnt_rounding_beats_nearest_rounding() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 12, 3, padding=1)
    inputs = [correlated(seed) for seed in range(6)]
    nearest = solved(conv, presets.rtn("w4a8_channel"), inputs)
    learnt = solved(conv, presets.q_diffusion("w4a8_channel", reconstruction={"steps": 60}), inputs)
    fresh = correlated(20)
    assert error(conv, learnt, fresh) < error(conv, nearest, fresh)


class Skip(nn.Module):
    """A block of a UNet's way up: a skip connection of other size joins, SiLU, 3×3 and 1×1."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(12, 8, 3, padding=1)
        self.shortcut = nn.Conv2d(12, 8, 1)
        self.out = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        joined = torch.cat((x, 20 * skip), 1)
        return self.out(nn.functional.silu(self.conv(joined) / 4) + 0 * self.shortcut(joined).sum())


def batches(count: int, start: int = 0) -> list[tuple[Tensor, Tensor]]:
    return [(draw(2, 8, 8, 8, seed=seed), draw(2, 4, 8, 8, seed=seed + 100)) for seed in range(start, start + count)]


def test_cuts_count_channels_and_lower_the_error() -> None:
    torch.manual_seed(0)
    model, cuts = Skip(), {"conv": Segments(input=(8, 4))}
    with torch.no_grad():
        model.conv.weight[:, :8] *= 20  # the piece of small inputs matters as much as the other
    errors = {}
    for cut in (False, True):
        quantized = Skip()
        quantized.load_state_dict(model.state_dict())
        quantize(quantized, presets.rtn("w8a8_tensor", seglinear=cut), batches(6), cuts)
        errors[cut] = segquant.layer_errors(model, quantized, batches(3, 40))["conv"]
    assert quantized.conv.layout.columns == (72, 36) and quantized.conv.input_scale.shape == (1, 2)
    assert errors[True] < 0.8 * errors[False]


def test_one_scale_per_sign_after_an_activation() -> None:
    conv = nn.Conv2d(6, 8, 3, padding=1)
    inputs = [nn.functional.silu(3 * draw(2, 6, 8, 8, seed=seed)) for seed in range(5)]
    fed = Segments(activation="silu")
    errors = [
        error(conv, solved(conv, presets.rtn("w8a8", dualscale=dual), inputs, fed), inputs[0]) for dual in (False, True)
    ]
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("preset", ["segquant_g", "segquant_r", "svdquant", "ptq4dit", "awq", "auto"])
@pytest.mark.parametrize("precision", ["w8a8_tensor", "w4a8"])
def test_every_method_takes_convolutions(preset: str, precision: str) -> None:
    torch.manual_seed(0)
    model, quantized = Skip(), Skip()
    quantized.load_state_dict(model.state_dict())
    segments = {"conv": Segments(input=(8, 4)), "shortcut": Segments(input=(8, 4)), "out": Segments(activation="silu")}
    quantize(quantized, getattr(presets, preset)(precision), batches(6), segments)
    found = segquant.layer_errors(model, quantized, batches(3, 40))
    assert set(found) == {"conv", "shortcut", "out"} and max(found.values()) < (0.04 if precision != "w4a8" else 0.2)
    assert not any(layer.layout.transform("rotation") for layer in quantized.children())


def test_saved_and_loaded_bit_for_bit(tmp_path) -> None:
    model = Skip()
    quantize(model, presets.segquant_g("w4a8"), batches(5), {"conv": Segments(input=(8, 4))})
    segquant.save_quantized(model, tmp_path / "model")
    again = segquant.load_quantized(tmp_path / "model", Skip())
    assert isinstance(again.conv, QuantConv2d) and again.conv.window == model.conv.window
    assert torch.equal(again(*batches(1)[0]), model(*batches(1)[0]))


def test_a_linear_does_not_load_into_a_convolution(tmp_path) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    segquant.quantize_(model, presets.rtn("w8a8"), [(draw(3, 4),), (draw(3, 4, seed=1),)])
    segquant.save_quantized(model, tmp_path / "model")
    with pytest.raises(QuantizationError, match="no linear '0'"):
        segquant.load_quantized(tmp_path / "model", nn.Sequential(nn.Conv2d(4, 4, 1)))


def test_linears_alone_by_default_and_grouped_convolutions_never() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Conv2d(4, 4, 3), "deep": nn.Conv2d(4, 4, 3, groups=4)})
    assert list(quantizable(model)) == ["a", "b"]
    assert list(targets(model, presets.rtn("w8a8"))) == ["a"]


def test_groups_that_do_not_divide_patches_shrink() -> None:
    method = layer_method(presets.rtn("w4a8"), nn.Conv2d(3, 8, 3))
    assert method.scheme.weight.group_size == 27 and method.scheme.input == presets.rtn("w4a8").scheme.input
    assert layer_method(presets.rtn("w4a8"), nn.Conv2d(32, 8, 3)) == presets.rtn("w4a8")
    with pytest.raises(TypeError, match="ungrouped"):
        as_linear(nn.Conv2d(4, 4, 3, groups=2))


FORMATS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "every other row": lambda x: x[:, :, ::2],
    "every other row, channels_last": lambda x: x.to(memory_format=torch.channels_last)[:, :, ::2],
    "turned": lambda x: x.transpose(2, 3),
    "one pixel": lambda x: x[:, :, :1, :1],
    "one pixel, channels_last": lambda x: x[:, :, :1, :1].contiguous(memory_format=torch.channels_last),
    "expanded": lambda x: x[:, :1].expand_as(x),
    "one picture": lambda x: x[0],
    "none": lambda x: x[:0],
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kernel, channels", [(3, 4), (1, 4), (3, 1), (1, 1)])
def test_memory_format_is_the_float_layers(form: str, kernel: int, channels: int) -> None:
    conv = nn.Conv2d(channels, 5, kernel, padding=kernel // 2)
    layer = QuantLinear.from_float(conv, presets.rtn("w8a8_dynamic"))
    x = FORMATS[form](draw(2, channels, 6, 6))
    with torch.no_grad():
        exact, found = conv(x), layer(x)
    assert found.stride() == exact.stride() and found.shape == exact.shape
    assert torch.equal(layer(x.contiguous()), found)
