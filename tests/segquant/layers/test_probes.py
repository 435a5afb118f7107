"""What code asks of a layer is answered by the quantized one as by the float one; what writes to it is told so."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import segquant
from segquant import QuantizationError, QuantLinear, presets
from segquant.layers.weight import QuantWeight
from segquant.modules.layers import quantizable
from tests.segquant.support import tensor

FLOATS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(64, 32),
    "no bias": lambda: nn.Linear(64, 32, bias=False),
    "convolution": lambda: nn.Conv2d(6, 4, (3, 2), stride=2, padding=(1, 0), dilation=(1, 2)),
    "same": lambda: nn.Conv2d(6, 4, 2, padding="same", padding_mode="reflect"),
}
each_layer = pytest.mark.parametrize("kind", FLOATS)


def pair(kind: str = "linear", dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    layer = FLOATS[kind]().to(dtype)
    return layer, QuantLinear.from_float(layer, presets.rtn("w8a8_dynamic"))


@each_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_probes_are_answered_as_by_the_float_layer(kind: str, dtype: torch.dtype) -> None:
    layer, quantized = pair(kind, dtype)
    for name in ("shape", "dtype", "device", "ndim", "is_leaf"):
        assert getattr(quantized.weight, name) == getattr(layer.weight, name), name
        assert getattr(quantized.weight.data, name) == getattr(layer.weight.data, name), name
    assert quantized.weight.numel() == layer.weight.numel() and quantized.weight.stride() == layer.weight.stride()
    assert next(quantized.parameters()).dtype == next(layer.parameters()).dtype
    assert (quantized.bias is None) == (layer.bias is None)
    assert quantized.bias is None or (quantized.bias.dtype, quantized.bias.shape) == (dtype, layer.bias.shape)
    for name in set(layer.__constants__) - {"in_features"}:
        if name != "padding" or kind != "same":
            assert getattr(quantized, name) == getattr(layer, name), name
    assert isinstance(quantized, type(layer)) and isinstance(quantized, QuantLinear)
    assert isinstance(quantized, nn.Linear) == isinstance(layer, nn.Linear)


@each_layer
def test_the_weight_is_read_like_any_tensor(kind: str) -> None:
    layer, quantized = pair(kind)
    weight, exact = quantized.weight, layer.weight.detach()
    step = float(quantized.weight_scale.max())
    plain = weight.clone()
    assert type(plain) is Tensor and float((plain - exact).abs().max()) <= 0.51 * step
    assert torch.equal(weight.flatten(1).T, plain.flatten(1).T) and torch.equal(weight[0], plain[0])
    assert weight.tolist() == plain.tolist() and (weight.detach().numpy() == plain.numpy()).all()
    assert repr(weight) == repr(plain) and float(weight.sum()) == float(plain.sum())
    assert type(copy.deepcopy(weight)) is Tensor and weight.bfloat16().dtype == torch.bfloat16
    assert torch.equal(torch.cat(list(weight.chunk(2))), plain)
    assert torch.equal(torch.empty_like(plain).copy_(weight), plain)


def test_a_function_that_takes_the_weight_gets_its_values() -> None:
    """nn.MultiheadAttention and its like: the layer itself is never called."""
    layer, quantized = pair("linear", torch.bfloat16)
    x = tensor(3, 64).bfloat16()
    found = nn.functional.linear(x, quantized.weight, quantized.bias)
    assert found.dtype == torch.bfloat16 and (found - layer(x)).norm() < 0.02 * layer(x).norm()
    x.requires_grad_()
    nn.functional.linear(x, quantized.weight).sum().backward()
    assert torch.allclose(x.grad, quantized.weight.sum(0).expand(3, -1), atol=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_cast_moves_the_dtype_of_the_weight_and_no_code(dtype: torch.dtype) -> None:
    _, quantized = pair()
    codes, scale = quantized.codes.clone(), quantized.weight_scale.clone()
    cast = copy.deepcopy(quantized).to(dtype)
    assert cast.weight.dtype == cast.bias.dtype == next(cast.parameters()).dtype == dtype
    assert torch.equal(cast.codes, codes) and torch.equal(cast.weight_scale, scale)
    assert torch.equal(cast.float().weight, quantized.weight)


def test_counts_take_no_memory_and_no_training() -> None:
    layer, quantized = pair()
    assert segquant.model_weight_bytes(quantized) == quantized.weight_bytes() < 0.4 * 4 * layer.weight.numel()
    assert [(p.numel(), p.requires_grad) for p in quantized.parameters()] == [(0, False)]
    optimizer = torch.optim.AdamW(quantized.requires_grad_(True).parameters(), lr=1.0)
    x = tensor(2, 64)
    before = quantized(x)
    quantized(x).sum().backward() if quantized(x).requires_grad else None
    optimizer.step()
    assert torch.equal(quantized(x), before)


def _assign(layer: nn.Module) -> None:
    layer.weight = nn.Parameter(torch.zeros(32, 64))


def _assign_data(layer: nn.Module) -> None:
    layer.weight.data = torch.zeros(32, 64)


def _add_data(layer: nn.Module) -> None:
    layer.weight.data += 1  # how an adapter is merged


def _entry(layer: nn.Module) -> None:
    layer.weight.data[0, 0] = 1.0


def _trained(layer: nn.Module) -> None:
    layer.weight.requires_grad = True


WRITES: dict[str, Callable[[nn.Module], object]] = {
    "assign": _assign,
    "assign data": _assign_data,
    "add": _add_data,
    "entry": _entry,
    "train": _trained,
    "requires_grad_": lambda layer: layer.weight.requires_grad_(),
    "copy_": lambda layer: layer.weight.data.copy_(torch.zeros(32, 64)),
    "a view": lambda layer: layer.weight.T[0].zero_(),
    "a part": lambda layer: layer.weight.chunk(2)[1].mul_(2),
    "out": lambda layer: torch.zeros(32, 64, out=layer.weight),
    "init": lambda layer: nn.init.kaiming_uniform_(layer.weight),
    "reset": lambda layer: layer.reset_parameters(),
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}


@pytest.mark.parametrize("write", WRITES)
def test_writing_to_the_weight_raises(write: str) -> None:
    _, quantized = pair()
    before = quantized(tensor(2, 64))
    with pytest.raises(QuantizationError, match="made from its codes whenever it is read"):
        WRITES[write](quantized)
    assert torch.equal(quantized(tensor(2, 64)), before)


def test_what_torch_itself_refuses() -> None:
    _, quantized = pair()
    with pytest.raises(ValueError, match="does not have a parameter"):
        parametrizations.weight_norm(quantized)


@pytest.mark.parametrize("strict", [True, False])
def test_a_float_state_is_not_loaded_in_part(strict: bool) -> None:
    layer, quantized = pair()
    model, before = nn.Sequential(quantized), quantized.bias.clone()
    state = {name: value + 1 for name, value in nn.Sequential(layer).state_dict().items()}
    with pytest.raises(
        RuntimeError, match=r"0\.weight is a float weight, and 0 is quantized: load float weights before"
    ):
        model.load_state_dict(state, strict=strict)
    assert torch.equal(quantized.bias, before)


def test_weights_are_not_joined_into_a_float_layer() -> None:
    """As fuse_qkv_projections does it; a forward that joins weights, for one product, runs."""
    _, quantized = pair()
    with pytest.raises(QuantizationError, match="not joined into a float layer.*fuse before quantize_"):
        torch.cat([quantized.weight.data, quantized.weight.data])
    for one, other in (
        (quantized.weight.data, torch.zeros(32, 64)),
        (torch.zeros(64, 32), quantized.weight.data.T),
        (quantized.weight.data.chunk(2)[0], quantized.weight[:2]),
    ):
        with pytest.raises(QuantizationError, match="not joined into a float layer"):
            torch.cat([one, other])
    assert torch.cat([quantized.weight, quantized.weight]).shape == (64, 64)


@each_layer
def test_views_have_the_form_of_the_float_weights(kind: str) -> None:
    layer, quantized = pair(kind)
    weight, exact = quantized.weight, layer.weight.detach()
    for view in (
        lambda w: w.flatten(1).T,
        lambda w: w.movedim(0, 1),
        lambda w: w[1::2],
        lambda w: w.data.unbind(1)[-1],
    ):
        found, expected = view(weight), view(exact)
        assert (found.shape, found.stride(), found.dtype) == (expected.shape, expected.stride(), expected.dtype)
        assert torch.equal(found, view(weight.clone()))
    moved = copy.deepcopy(quantized).to("meta")
    assert moved.weight.device.type == moved.weight[0].device.type == "meta" and moved.weight.shape == exact.shape


def test_a_weight_is_not_trained_and_not_shared() -> None:
    _, quantized = pair()
    assert not quantized.weight.requires_grad_(False).requires_grad
    quantized.weight.requires_grad = False
    with pytest.raises(QuantizationError, match="made from its codes"):
        quantized.weight.share_memory_()


def test_written_buffers_are_seen_by_the_next_call() -> None:
    _, quantized = pair()
    x = tensor(2, 64)
    before = quantized(x) - quantized.bias
    quantized.weight_scale.mul_(2)
    assert torch.allclose(quantized(x) - quantized.bias, 2 * before, atol=1e-5)
    quantized.bias = nn.Parameter(torch.zeros(32))
    assert torch.allclose(quantized(x), 2 * before, atol=1e-5) and list(quantized.parameters())[0].numel() == 0
    with pytest.raises(QuantizationError, match=r"bias of a quantized layer has shape \(32,\), and None is given"):
        quantized.bias = None
    with pytest.raises(QuantizationError, match=r"codes of a quantized layer has shape"):
        quantized.codes = torch.zeros(3)


@each_layer
def test_copied_and_pickled_layers_give_the_same(kind: str) -> None:
    layer, quantized = pair(kind, torch.bfloat16)
    x = (tensor(2, 64) if isinstance(layer, nn.Linear) else tensor(2, 6, 9, 9)).bfloat16()
    file = io.BytesIO()
    torch.save(quantized, file)
    file.seek(0)
    for other in (copy.deepcopy(quantized), torch.load(file, weights_only=False)):
        assert torch.equal(other(x), quantized(x)) and other.weight.dtype == torch.bfloat16


def test_a_state_without_the_empty_parameter_loads() -> None:
    """States of before it was there."""
    _, quantized = pair()
    state = {name: value for name, value in quantized.state_dict().items() if value.numel()}
    other = QuantLinear(quantized.layout)
    other.load_state_dict(state)
    assert torch.equal(other(tensor(2, 64)), quantized(tensor(2, 64)))


def test_quantized_layers_are_not_targets() -> None:
    model = nn.Sequential(nn.Linear(64, 32), nn.Conv2d(3, 3, 3))
    segquant.quantize_(nn.Sequential(model[0]), presets.rtn("w8a8_dynamic"), [])
    quantized = segquant.quantize_(nn.Sequential(*model), presets.rtn("w8a8_dynamic", convolutions=True), [])
    assert not quantizable(quantized) and isinstance(quantized[0].weight, QuantWeight)


def test_arrays_of_a_weight_are_read_only() -> None:
    """What is written to them would be lost."""
    layer = QuantLinear.from_float(nn.Linear(8, 4), presets.rtn("w8a8_dynamic"))
    for array in (layer.weight.numpy(), np.asarray(layer.weight), layer.weight.detach().numpy()):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0
    assert torch.equal(torch.from_dlpack(layer.weight), layer.weight.values())
