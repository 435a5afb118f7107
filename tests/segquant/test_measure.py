"""Errors and sizes of models that any tool may have quantized."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from segquant import (
    QuantizationError,
    layer_errors,
    model_weight_bytes,
    output_error,
    output_errors,
    presets,
    quantize_,
)
from segquant.measure import model_errors, quantized_layers
from segquant.modules.tensors import stored_tensors


class Codes(Tensor):
    """A weight of int8 codes with one float32 scale a row, as other libraries wrap them."""

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor) -> Codes:
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scale.dtype)

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        self.codes, self.scale = codes, scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scale"], None

    def dequantize(self) -> Tensor:
        return self.codes * self.scale

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].codes, args[0].scale)
        plain = [argument.dequantize() if isinstance(argument, Codes) else argument for argument in args]
        return func(*plain, **(kwargs or {}))


class Wrapped(nn.Linear):
    """Another tool's linear: its output is a wrapper subclass too."""

    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input)
        scale = output.abs().amax(-1, keepdim=True) / 127
        return Codes((output / scale).round().to(torch.int8), scale)


def _codes(weight: Tensor) -> Codes:
    scale = weight.abs().amax(1, keepdim=True) / 127
    return Codes((weight / scale).round().to(torch.int8), scale)


@pytest.fixture
def models() -> tuple[nn.Sequential, nn.Sequential]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 4)).eval()
    changed = copy.deepcopy(model)
    changed[0].weight = nn.Parameter(_codes(model[0].weight.detach()), requires_grad=False)
    changed[1] = Wrapped(5, 5)
    changed[1].load_state_dict(model[1].state_dict())
    return model, changed


def test_layers_of_other_tools_are_found_and_compared(models: tuple[nn.Sequential, nn.Sequential]) -> None:
    model, changed = models
    assert quantized_layers(model, changed) == ["0", "1"]
    x = torch.randn(7, 6)
    errors = layer_errors(model, changed, [x])
    exact = model[0](x).detach()
    found = x @ changed[0].weight.dequantize().T + model[0].bias.detach()
    assert errors["0"] == pytest.approx(float((found - exact).norm() / exact.norm()), rel=1e-4)
    assert 0 < errors["1"] < 0.01


def test_layers_may_be_named(models: tuple[nn.Sequential, nn.Sequential]) -> None:
    model, changed = models
    assert layer_errors(model, changed, [torch.randn(3, 6)], layers=["2"]) == {"2": 0.0}
    with pytest.raises(QuantizationError, match="float model has no linear or convolution 'nowhere'"):
        layer_errors(model, changed, [torch.randn(3, 6)], layers=["nowhere"])
    with pytest.raises(QuantizationError, match="quantized model has no linear or convolution '2'"):
        layer_errors(model, changed[:2], [torch.randn(3, 6)], layers=["2"])


def test_bytes_are_those_of_the_stored_tensors(models: tuple[nn.Sequential, nn.Sequential]) -> None:
    model, changed = models
    assert model_weight_bytes(model) == 4 * (6 * 5 + 5 + 5 * 5 + 5 + 5 * 4 + 4)
    assert model_weight_bytes(changed) == model_weight_bytes(model) - 4 * 6 * 5 + (6 * 5 + 4 * 5)
    assert {tensor.dtype for tensor in stored_tensors(changed[0])} == {torch.int8, torch.float32}


def test_shared_tensors_count_once() -> None:
    shared = nn.Linear(3, 3, bias=False)
    assert model_weight_bytes(nn.Sequential(shared, nn.Sequential(shared))) == 36


def test_outputs_of_zeros_count_and_layers_never_called_do_not() -> None:
    class Pick(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = (nn.Linear(6, 5, bias=False) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = Pick()
    assert layer_errors(model, copy.deepcopy(model), [torch.zeros(3, 6)], ["used", "unused"]) == {"used": 0.0}


class Denoiser(nn.Module):
    """A convolution and linears with two outputs; it counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv, self.last = nn.Linear(8, 8), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(8, 6)
        self.calls = 0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        hidden = self.conv(self.first(x).relu())
        return self.last(hidden), hidden


@pytest.fixture
def pair() -> tuple[Denoiser, nn.Module, list[dict[str, Tensor]]]:
    torch.manual_seed(0)
    model = Denoiser().double().eval()
    batches = [{"x": torch.randn(rows, 4, 5, 8, dtype=torch.float64)} for rows in (6, 6, 2)]
    quantized = quantize_(copy.deepcopy(model), presets.rtn("w8a8", convolutions=True), batches)
    model.calls = quantized.calls = 0
    return model, quantized, batches


def test_one_pass_finds_what_three_functions_find(pair) -> None:
    model, quantized, batches = pair
    found = model_errors(model, quantized, batches, parts=[3, 3, 1])
    assert model.calls == quantized.calls == len(batches)
    assert found.layers == layer_errors(model, quantized, batches) and len(found.layers) == 3
    assert found.output == output_error(model, quantized, batches)
    apart = [{"x": piece} for batch in batches for piece in batch["x"].split(2)]  # two rows a part
    assert found.parts == pytest.approx(output_errors(model, quantized, apart), rel=1e-9)
    assert len(set(found.parts)) == 7 and all(part > 0 for part in found.parts)
    squares = sum(part**2 * energy for part, energy in zip(found.parts, found.energies, strict=True))
    assert found.output == pytest.approx((squares / sum(found.energies)) ** 0.5, rel=1e-9)
    with torch.no_grad():
        energies = [sum(float(y.square().sum()) for y in model(**batch)) for batch in apart]
    assert found.energies == pytest.approx(energies, rel=1e-9)
    for layer, squares_of in found.layer_parts.items():
        errors = [layer_errors(model, quantized, [piece], [layer])[layer] for piece in apart]
        assert [(error / energy) ** 0.5 for error, energy in squares_of] == pytest.approx(errors, rel=1e-9)
        whole_error = sum(error for error, _ in squares_of) / sum(energy for _, energy in squares_of)
        assert found.layers[layer] == pytest.approx(whole_error**0.5, rel=1e-9)
    assert list(found.layer_parts) == list(found.layers)
    whole = model_errors(model, quantized, batches)
    assert whole.parts == output_errors(model, quantized, batches) and whole.layer_parts == {}
    assert not any(module._forward_hooks for module in model.modules())


class _Mixed(nn.Module):
    """One layer's rows are of all samples together."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.mixed = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.own(x) + self.mixed(x.mean(0, keepdim=True))


def test_layers_without_rows_of_their_own_have_no_parts() -> None:
    torch.manual_seed(0)
    model = _Mixed().eval()
    batches = [(torch.randn(2, 8),), (torch.randn(2, 8),)]
    quantized = quantize_(copy.deepcopy(model), presets.rtn("w4a8_channel"), batches)
    found = model_errors(model, quantized, batches, parts=[2, 2])
    assert found.layer_parts["mixed"] == [(0.0, 0.0)] * 4 and found.layers["mixed"] > 0
    assert all(error > 0 and energy > 0 for error, energy in found.layer_parts["own"])


def test_rows_that_are_no_equal_parts_and_no_batches(pair) -> None:
    model, quantized, batches = pair
    with pytest.raises(QuantizationError, match=r"shape \(6, 4, 5, 6\) cannot be cut into 4 parts"):
        model_errors(model, quantized, batches, parts=[4, 4, 4])
    with pytest.raises(QuantizationError, match="no batches"):
        model_errors(model, quantized, [])
    assert not any(module._forward_hooks for module in model.modules())


class _ListOfRows(nn.Module):
    """As Z-Image: one tensor per row, whose first axis is its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        return {"sample": [row.T for row in self.linear(x)]}


def test_an_output_list_is_cut_into_its_entries() -> None:
    torch.manual_seed(0)
    model = _ListOfRows().eval()
    batches = [(torch.randn(4, 6, 8),), (torch.randn(2, 6, 8),)]
    quantized = quantize_(copy.deepcopy(model), presets.rtn(precision="w4a8_channel"), batches)
    apart = [(rows[index : index + 1],) for (rows,) in batches for index in range(len(rows))]
    found = model_errors(model, quantized, batches, parts=[4, 2])
    assert found.parts == pytest.approx(output_errors(model, quantized, apart), rel=1e-6)
    assert len(set(found.parts)) == 6
