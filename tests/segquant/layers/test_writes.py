"""What is written to a quantized layer's buffers is computed with and saved, or refused; nothing is lost in silence."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from segquant import (
    Backend,
    QuantizationError,
    QuantLinear,
    load_quantized,
    presets,
    register,
    registry,
    save_quantized,
    set_backend_,
)
from segquant.kernels.reference import REFERENCE
from tests.segquant.support import tensor


def layer() -> QuantLinear:
    torch.manual_seed(0)
    return QuantLinear.from_float(nn.Linear(8, 4), presets.smoothquant("w8a8_dynamic", alpha=0.5), STATS)


def _stats() -> Any:
    from segquant import InputStats

    found = InputStats("layer", 8)
    found.update(tensor(16, 8), None)
    return found


STATS = _stats()
X = tensor(2, 8)


def _assign_data(quantized: nn.Module) -> None:
    quantized.weight_scale.data = torch.full((4, 1), 0.5)


def _entry(quantized: nn.Module) -> None:
    quantized.weight_scale[1] = 0.5


def _where_python_does_not_look(quantized: nn.Module) -> None:
    data = quantized.weight_scale.data
    with torch._C.DisableTorchFunctionSubclass():
        data.mul_(2)


WRITES: dict[str, Callable[[nn.Module], object]] = {
    "data": lambda q: q.weight_scale.data.mul_(2),
    "data of codes": lambda q: q.codes.data.fill_(3),
    "data of a transform": lambda q: q.smooth.data.mul_(2),
    "data of data": lambda q: q.weight_scale.data.data.mul_(2),
    "data of a view": lambda q: q.weight_scale[1].data.zero_(),
    "a view's part": lambda q: q.codes.T.chunk(2)[1].data.zero_(),
    "data, without Python": _where_python_does_not_look,
    "data assigned": _assign_data,
    "entry": _entry,
    "in place": lambda q: q.weight_scale.mul_(2),
    "detached": lambda q: q.weight_scale.detach().data.mul_(2),
    "out": lambda q: torch.ones(4, 1, out=q.weight_scale),
    "several": lambda q: torch._foreach_mul_([q.weight_scale], 2.0),
    "initialized": lambda q: nn.init.constant_(q.weight_scale, 0.5),
    "parameter": lambda q: nn.Parameter(q.weight_scale).data.mul_(2),
    "the bias's data": lambda q: q.bias.data.add_(1),
    "iterated": lambda q: next(b for b in q.buffers() if b.dim() == 2 and b.dtype.is_floating_point).mul_(2),
    "state": lambda q: q.state_dict()["weight_scale"].mul_(2),
}


@pytest.mark.parametrize("write", WRITES)
def test_what_is_written_is_seen_by_the_next_call(write: str) -> None:
    quantized = layer()
    before = quantized(X)
    WRITES[write](quantized)
    fresh = QuantLinear(quantized.layout)
    fresh.load_state_dict(quantized.state_dict())
    assert torch.equal(quantized(X), fresh(X)) and not torch.equal(quantized(X), before)
    assert not quantized.is_stale()


COUNTED = ("the bias's data", "iterated", "state", "data, without Python")
"""Writes that are counted, but not told to the layer."""


@pytest.mark.parametrize("write", [name for name in WRITES if name not in COUNTED])
def test_a_write_forgets_what_compiled_code_uses_unasked(write: str, monkeypatch: pytest.MonkeyPatch) -> None:
    quantized = layer()
    before = quantized(X)
    WRITES[write](quantized)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not torch.equal(quantized(X), before)


def test_saving_lets_compiled_code_use_what_is_saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = nn.Sequential(layer())
    model(X)
    WRITES["iterated"](model[0])
    save_quantized(model, tmp_path / "model")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    found = model(X)
    monkeypatch.undo()
    assert torch.equal(found, load_quantized(tmp_path / "model", nn.Sequential(nn.Linear(8, 4)))(X))


@pytest.mark.slow
def test_compiled_code_sees_what_is_written() -> None:
    quantized = layer()
    run = torch.compile(quantized, backend="eager", fullgraph=True)
    with torch.no_grad():
        before = run(X)
        quantized.weight_scale.data.mul_(2)
        assert torch.equal(run(X), quantized(X)) and not torch.equal(run(X), before)


def test_buffers_made_in_inference_mode_are_seen_too() -> None:
    quantized = layer()
    with torch.inference_mode():
        for name, buffer in quantized.tensors().items():
            quantized._buffers[name] = buffer.clone()
    before = quantized(X)
    quantized.weight_scale.mul_(2)
    assert not torch.equal(quantized(X), before)
    with torch.inference_mode():
        quantized.weight_scale.mul_(0.5)
        assert torch.equal(quantized(X), before)


class Dropping(Backend):
    """Keeps none of the layer's tensors, so that a new one may get the id of an old one."""

    name: ClassVar[str] = "dropping"

    def pack(self, layout: Any, tensors: Any) -> Tensor:
        return REFERENCE.pack(layout, tensors).weight

    def linear(self, x: Tensor, layout: Any, packed: Any) -> Tensor:
        return x @ packed.T


def test_a_buffer_in_a_freed_ones_place_is_another() -> None:
    quantized = layer()
    quantized.backend = Dropping()
    values, first = quantized.weight_scale.tolist(), quantized(X)
    for factor in range(2, 8):
        del quantized._buffers["weight_scale"]
        quantized._buffers["weight_scale"] = torch.tensor(values) * factor
        assert torch.allclose(quantized(X), factor * first)


def test_a_handed_out_buffer_is_like_any_tensor() -> None:
    quantized = layer()
    scale, plain = quantized.weight_scale, quantized._buffers["weight_scale"]
    assert isinstance(scale, Tensor) and torch.equal(scale, plain) and repr(scale) == repr(plain)
    assert type(scale + 1) is type(scale.clone()) is type(scale.double()) is type(copy.deepcopy(scale)) is Tensor
    file = io.BytesIO()
    torch.save(scale, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True), plain)
    for array in (scale.numpy(), np.asarray(scale)):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0
    quantized.weight_scale = scale * 2
    quantized.smooth = quantized.smooth
    quantized._buffers["codes"] = quantized.codes  # as accelerate does it
    quantized(X)
    assert {type(buffer) for buffer in quantized._buffers.values()} == {Tensor}
    other = scale.data
    del quantized
    other.mul_(2)


@pytest.mark.parametrize("value", [torch.zeros(4, 1).half(), torch.zeros(4), 0.5, None])
def test_data_of_another_kind_is_refused(value: object) -> None:
    quantized = layer()
    with pytest.raises(QuantizationError, match=r"buffer is \[4, 1\] float32 on cpu, and .* is given; assign"):
        quantized.weight_scale.data = value


UNSEEN: dict[str, Callable[[nn.Module], object]] = {
    "numpy": lambda q: q.state_dict()["codes"].numpy().fill(3),
    "data": lambda q: q._buffers["weight_scale"].data.mul_(2),
    "storage": lambda q: q.codes.untyped_storage().fill_(3),
}


class Opaque:
    """As a kernel's object: it does not say what it holds."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.clone()


@pytest.fixture
def hiding() -> Iterator[str]:
    @register
    class Hiding(Backend):
        name: ClassVar[str] = "hiding"

        def why_not(self, layout: Any, device: torch.device) -> None:
            return None

        def pack(self, layout: Any, tensors: Any) -> Any:
            return {"own": (Opaque(REFERENCE.pack(layout, tensors).weight), "words", None), "tensors": dict(tensors)}

        def linear(self, x: Tensor, layout: Any, packed: Any) -> Tensor:
            pack = REFERENCE.pack(layout, packed["tensors"])
            return REFERENCE.linear(x, layout, type(pack)(packed["tensors"], packed["own"][0].weight))

    yield "hiding"
    del registry.table("backend")["hiding"]


@pytest.mark.parametrize("write", UNSEEN)
@pytest.mark.parametrize("backend", ["reference", "hiding"])
def test_a_write_that_no_layer_can_see_is_not_saved(write: str, backend: str, hiding: str, tmp_path: Path) -> None:
    model = nn.Sequential(layer())
    set_backend_(model, backend)
    before = model(X)
    save_quantized(model, tmp_path / "before")
    UNSEEN[write](model[0])
    assert torch.equal(model(X), before)
    with pytest.raises(QuantizationError, match=r"0 computes with an older weight .* layer\.forget_packed\(\)"):
        save_quantized(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    model[0].forget_packed()
    loaded = load_quantized(save_quantized(model, tmp_path / "model"), nn.Sequential(nn.Linear(8, 4)))
    assert torch.equal(loaded(X), model(X)) and not torch.equal(model(X), before)


def test_a_scale_that_is_not_a_number_is_not_stale() -> None:
    quantized = layer()
    quantized.weight_scale[0] = float("nan")
    quantized(X)
    assert not quantized.is_stale()


REPARAMETRIZED: dict[str, Callable[[nn.Module], object]] = {
    "weight_norm": lambda q: weight_norm(q),
    "spectral_norm": lambda q: spectral_norm(q),
    "weight_norm of the bias": lambda q: weight_norm(q, "bias"),
    "new weight_norm of the bias": lambda q: parametrizations.weight_norm(q, "bias"),
    "new orthogonal of the codes": lambda q: parametrizations.orthogonal(q, "codes"),
    "pruning the bias": lambda q: prune.l1_unstructured(q, "bias", 0.5),
    "pruning the codes": lambda q: prune.identity(q, "codes"),
    "deleting": lambda q: delattr(q, "bias"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("change", REPARAMETRIZED)
def test_reparametrizing_is_refused_and_changes_nothing(change: str) -> None:
    quantized = layer()
    before, state = quantized(X), set(quantized.state_dict())
    with pytest.raises(QuantizationError, match="has no parameter '(weight|bias|codes)'.*before quantize_"):
        REPARAMETRIZED[change](quantized)
    assert torch.equal(quantized(X), before) and set(quantized.state_dict()) == state
    assert torch.equal(copy.deepcopy(quantized)(X), before) and not quantized._forward_pre_hooks
