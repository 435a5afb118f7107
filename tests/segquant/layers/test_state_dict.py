"""A weight is found by its name in the state dict of a quantized model, as loaders of adapters look for shapes."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import segquant
from segquant import QuantizationError, QuantLinear, presets


class Library(nn.Module):
    """As a library's model: it has save_pretrained."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(8, 6), nn.Linear(6, 8)])
        self.norm = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        result: torch.Tensor = self.norm(x)
        return result

    def save_pretrained(self, *_: Any) -> None: ...


def quantized(model: nn.Module, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    return segquant.quantize_(model, presets.rtn("w8a8_dynamic", **more), [torch.randn(2, 8)])


@pytest.fixture
def model() -> nn.Module:
    return quantized(Library())


def test_weights_are_found_and_not_listed(model: nn.Module) -> None:
    state, layer = model.state_dict(), model.get_submodule("blocks.0")
    assert isinstance(layer, QuantLinear) and "blocks.0.weight" not in state and "blocks.0.codes" in state
    assert state["blocks.0.weight"].shape == (6, 8) and torch.equal(state["blocks.0.weight"], layer.weight)
    assert state["norm.weight"].shape == (8,)
    with pytest.raises(QuantizationError, match="made from its codes"):
        state["blocks.0.weight"].mul_(2)
    for name in ("blocks.2.weight", "blocks.0.scale", "blocks.weight", "norm.codes", "weight"):
        with pytest.raises(KeyError, match=name):
            state[name]


def test_around_an_adapter(model: nn.Module) -> None:
    """Such as peft's, which gives its base layer's weight as its own."""

    class Adapted(nn.Module):
        def __init__(self, base_layer: nn.Module) -> None:
            super().__init__()
            self.base_layer = base_layer
            self.down = nn.Linear(8, 2)

        @property
        def weight(self) -> Any:
            return self.base_layer.weight

    blocks = model.get_submodule("blocks")
    assert isinstance(blocks, nn.ModuleList)
    blocks[0] = Adapted(blocks[0])
    for name in ("blocks.0.weight", "blocks.0.base_layer.weight"):
        assert model.state_dict()[name].shape == (6, 8)


def test_it_is_stored_as_a_plain_dict(model: nn.Module, tmp_path: Path) -> None:
    state = model.state_dict()
    torch.save(state, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    for other in (loaded, copy.copy(state), copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
        assert type(other) is OrderedDict and list(other) == list(state)
        assert other._metadata == state._metadata  # type: ignore[attr-defined]
        assert all(torch.equal(other[name], tensor) for name, tensor in state.items())
    model.load_state_dict(loaded)


def test_it_does_not_keep_the_model() -> None:
    state = quantized(Library()).state_dict()
    with pytest.raises(KeyError, match=r"blocks\.0\.weight"):
        state["blocks.0.weight"]
    assert state["norm.weight"].shape == (8,)


def test_wherever_a_quantized_model_comes_from(model: nn.Module, tmp_path: Path) -> None:
    segquant.save_quantized(model, tmp_path / "saved")
    wrapper = quantized(nn.Sequential(Library()))
    partly = quantized(Library(), skip=["blocks.1"])
    twice = quantized(partly)
    others = (segquant.load_quantized(tmp_path / "saved", Library()), copy.deepcopy(model), wrapper[0], twice)  # type: ignore[index]
    for other in others:
        assert other.state_dict()["blocks.0.weight"].shape == (6, 8)
        assert len(other._state_dict_hooks) == 1
    assert "0.blocks.0.codes" in wrapper.state_dict()
