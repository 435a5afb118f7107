"""Inputs and layers of unusual shapes: as the float layer takes them, or refused with the true reason."""

from __future__ import annotations

import copy
import warnings
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from segquant import (
    Method,
    QuantConv2d,
    QuantizationError,
    QuantLinear,
    QuantScheme,
    QuantSpec,
    Segments,
    find_segments,
    observe,
    output_error,
    presets,
    quantize_,
)
from tests.segquant.support import brute_force, tensor

CUT = {"0": Segments(input=(16, 48), input_activations=(None, "silu"), output=(8, 24))}
ONE_SCALE = QuantScheme(QuantSpec("int8", "channel"), QuantSpec("int8", "tensor", dynamic=True))
METHODS = [
    presets.rtn("w8a8_tensor", seglinear=True, dualscale=True),
    presets.rtn("w8a8_dynamic", seglinear=True, dualscale=True),
    presets.rtn("w4a4"),
    Method.of("one_scale", ONE_SCALE, seglinear=True),
]


def linear(seed: int = 3) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(64, 32))
    model[0].weight.data = tensor(32, 64, seed=seed) / 8
    return model


def convolution(**settings: object) -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, **settings))  # type: ignore[arg-type]
    model[0].weight.data = tensor(*model[0].weight.shape, seed=3) / 6
    return model


@pytest.mark.parametrize("shape", [(64,), (0, 64), (2, 0, 64), (1, 64), (2, 3, 4, 64)])
@pytest.mark.parametrize("calibrated", [(8, 64), (64,)])
@pytest.mark.parametrize("method", METHODS, ids=["static", "token", "group", "tensor"])
def test_linears_take_any_number_of_dimensions(
    method: Method, calibrated: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    batches = [2 * tensor(*calibrated, seed=seed) for seed in range(4)]
    model, x = linear(), tensor(*shape, seed=9)
    layer = quantize_(copy.deepcopy(model), method, batches, CUT)[0]
    found = layer(x)
    assert found.shape == model(x).shape and found.dtype == x.dtype
    torch.testing.assert_close(found, brute_force_of_pieces(layer, x), rtol=1e-3, atol=1e-3)


def brute_force_of_pieces(layer: QuantLinear, x: Tensor) -> Tensor:
    if not x.numel():
        return torch.zeros(*x.shape[:-1], layer.out_features)
    return brute_force(layer, x.reshape(-1, 64)).reshape(*x.shape[:-1], -1).float()


def test_a_vector_has_a_dynamic_scale_for_each_of_its_pieces() -> None:
    layer = quantize_(linear(), METHODS[3], [tensor(4, 64)] * 2, CUT)[0]
    x = torch.cat((tensor(16) / 1000, tensor(48)))
    assert torch.equal(layer(x), layer(x[None])[0])


def test_rows_in_any_memory_order() -> None:
    layer = quantize_(linear(), METHODS[0], [tensor(8, 64)] * 2, CUT)[0]
    x = tensor(64, 6, seed=4).T
    assert not x.is_contiguous() and torch.equal(layer(x), layer(x.contiguous()))
    with pytest.raises(QuantizationError, match="calibration never called 0"):
        quantize_(linear(), METHODS[0], [torch.zeros(0, 64)] * 2, CUT)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_convolutions_without_a_batch(mode: str) -> None:
    model = convolution(padding_mode=mode)
    batches = [tensor(4, 6, 6, seed=seed) for seed in range(4)]
    method = presets.segquant_g("w8a8_tensor", convolutions=True, alpha=0.5)
    unbatched = quantize_(copy.deepcopy(model), method, batches)[0]
    batched = quantize_(copy.deepcopy(model), method, [batch[None] for batch in batches])[0]
    assert all(torch.equal(a, b) for a, b in zip(unbatched.buffers(), batched.buffers(), strict=True))
    x = tensor(4, 6, 6, seed=9)
    found = unbatched(x)
    assert found.shape == model(x).shape and torch.equal(found, unbatched(x[None])[0])
    assert (found - model(x)).norm() < 0.03 * model(x).norm()
    assert unbatched(x[None][:0]).shape == (0, 8, 6, 6)


def test_convolutions_in_any_memory_order() -> None:
    model = convolution()
    layer = quantize_(copy.deepcopy(model), presets.rtn(convolutions=True), [tensor(2, 4, 6, 6)] * 2)[0]
    x = tensor(2, 4, 6, 6, seed=5)
    assert torch.equal(layer(x.to(memory_format=torch.channels_last)), layer(x))
    turned = tensor(2, 6, 6, 4, seed=5).permute(0, 3, 2, 1)[:, :, ::2]
    assert torch.equal(layer(turned), layer(turned.contiguous()))
    stats = [observe(model, [data] * 2, only=["0"])["0"] for data in (x, x.to(memory_format=torch.channels_last))]
    assert torch.equal(stats[0].sample, stats[1].sample)


PRESETS = ("rtn", "segquant_g", "awq", "quarot", "ptq4dit", "svdquant", "auto", "q_diffusion")


@pytest.mark.parametrize("name, sizes", product(PRESETS, [(1, 1), (1, 5), (5, 1)]))
def test_layers_of_width_one(name: str, sizes: tuple[int, int]) -> None:
    settings = {"reconstruction": {"steps": 3}} if name == "q_diffusion" else {}
    model = nn.Sequential(nn.Linear(*sizes))
    model[0].weight.data = tensor(*model[0].weight.shape, seed=6) + 2
    batches = [tensor(8, sizes[0], seed=seed) for seed in range(6)]
    method = getattr(presets, name)("w8a8_dynamic", **settings)
    found = quantize_(copy.deepcopy(model), method, batches)
    assert output_error(model, found, [tensor(9, sizes[0], seed=9)]) < 0.02


REASONS = [
    (convolution(), "has no nn.Linear, and 1 nn.Conv2d: set convolutions=True"),
    (convolution(groups=4), "no nn.Linear and no ungrouped nn.Conv2d among its 2 modules: give the module"),
    (nn.Sequential(nn.ReLU()), "no nn.Linear and no ungrouped nn.Conv2d among its 2 modules: give the module"),
    (quantize_(linear(), presets.rtn("w4a8"), []), r"it is quantized already \(1 layers\): give the float model"),
    (nn.Sequential(nn.LazyLinear(4)), "layer '0' has no weight yet.*call the model once"),
    (linear().to("meta"), "weights have no values: load them first"),
]


@pytest.mark.parametrize("name", ["rtn", "segquant_g"])
@pytest.mark.parametrize("model, reason", REASONS, ids=["convolutions", "grouped", "none", "twice", "lazy", "meta"])
def test_models_without_a_layer_to_quantize(model: nn.Module, reason: str, name: str) -> None:
    with pytest.raises(QuantizationError, match=reason):
        quantize_(model, getattr(presets, name)("w8a8_tensor"), [tensor(2, 64)] * 2)


def test_layers_without_features() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: initializing zero-element tensors is a no-op
        empty = [nn.Linear(0, 4), nn.Linear(4, 0)]
    for layer in empty:
        with pytest.raises(QuantizationError, match=r"0: a layer of . -> . features has no weights.*skip=\['0'\]"):
            quantize_(nn.Sequential(layer), presets.rtn("w4a8_channel"), [])


def test_what_was_left_out_can_be_quantized_later() -> None:
    model = nn.Sequential(linear()[0], nn.Linear(32, 64))
    batches = [tensor(4, 64, seed=seed) for seed in range(3)]
    quantize_(model, presets.rtn("w8a8", skip=["1"]), batches)
    quantize_(model, presets.gptq("w8a8"), batches)
    assert all(isinstance(layer, QuantLinear) for layer in model)
    with pytest.raises(QuantizationError, match="nothing to plan; the model is quantized already"):
        find_segments(model, (batches[0],))


def test_a_model_of_convolutions_alone() -> None:
    model = nn.Sequential(convolution()[0], nn.SiLU(), nn.Conv2d(8, 4, 1))
    batches = [tensor(2, 4, 6, 6, seed=seed) for seed in range(4)]
    found = quantize_(copy.deepcopy(model), presets.segquant_a("w8a8_tensor", convolutions=True), batches)
    assert all(isinstance(layer, QuantConv2d) for layer in (found[0], found[2]))
    assert found[2].layout.dual == (True,)  # behind the SiLU
    assert output_error(model, found, batches) < 0.05


def test_names_that_no_layer_has() -> None:
    for key in ("only", "gram"):
        with pytest.raises(QuantizationError, match=f"{key} names 'nope', which is no layer of the model; known: 0"):
            observe(linear(), [tensor(2, 64)], **{key: ["nope"]})
    with pytest.raises(QuantizationError, match="layer '0' has no weight yet"):
        observe(nn.Sequential(nn.LazyLinear(3)), [tensor(2, 64)])
    assert observe(convolution(), [tensor(1, 4, 6, 6)]) == {}
