"""How a layer's weight reaches its call: as it is, made from parameters by a norm, or taken apart."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from segquant.graph.find import find_segments
from segquant.graph.segments import Segments

X = torch.randn(2, 5, 16)


class Taking(nn.Module):
    """A layer, and a function of it and of the input."""

    def __init__(self, out: int, function: Callable[..., Any]) -> None:
        super().__init__()
        self.q = nn.Linear(16, out)
        self.gain = nn.Parameter(torch.ones(out, 1))
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, self.q, x)


APART: dict[str, tuple[int, Callable[..., Any]]] = {
    "rows": (32, lambda m, q, x: (F.linear(x, q.weight[:16]).chunk(2, -1), F.linear(x, q.weight[16:]).chunk(2, -1))),
    "rows by chunk": (32, lambda m, q, x: [F.linear(x, w).chunk(2, -1) for w in q.weight.chunk(2)]),
    "rows that were copied": (16, lambda m, q, x: F.linear(x, q.weight[torch.arange(16)]).split([4, 12], -1)),
    "transpose": (16, lambda m, q, x: F.linear(x, q.weight.t()).split([4, 12], -1)),
    "transpose after a call": (16, lambda m, q, x: F.linear(F.glu(q(x)).repeat(1, 1, 2), q.weight.t())),
    "flipped": (16, lambda m, q, x: F.linear(x, q.weight.flip(0)).split([4, 12], -1)),
    "joined": (16, lambda m, q, x: F.linear(x, torch.cat([q.weight, q.weight])).chunk(2, -1)),
    "read as another shape": (16, lambda m, q, x: F.linear(x[..., :8], q.weight.view(32, 8)).chunk(2, -1)),
    "as a kernel": (16, lambda m, q, x: F.conv2d(x.mT[..., None], q.weight[..., None, None]).chunk(2, 1)),
}


@pytest.mark.parametrize("pattern", APART)
def test_a_weight_taken_apart_gives_no_cut(pattern: str, caplog: pytest.LogCaptureFixture) -> None:
    out, function = APART[pattern]
    assert find_segments(Taking(out, function), (X,)) == {"q": Segments()}
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warned == ["not cut, since a part or a function of the weight is used on its own: q"]


WHOLE: dict[str, Callable[..., Any]] = {
    "as it is": lambda m, q, x: F.linear(x, q.weight),
    "cast": lambda m, q, x: F.linear(x.double(), q.weight.double()),
    "scaled by rows": lambda m, q, x: F.linear(x, q.weight * m.gain),
    "standardized": lambda m, q, x: F.linear(x, (q.weight - q.weight.mean(1, keepdim=True)) / m.gain),
    "standardized by a norm": lambda m, q, x: F.linear(
        x, F.batch_norm(q.weight.view(1, 16, 16), None, None, training=True).view(16, 16)
    ),
}


@pytest.mark.parametrize("pattern", WHOLE)
def test_a_weight_whose_entries_keep_their_places_is_the_layer(pattern: str, caplog: pytest.LogCaptureFixture) -> None:
    model = Taking(16, lambda m, q, x: WHOLE[pattern](m, q, x).split([4, 12], -1))
    assert find_segments(model, (X,)) == {"q": Segments(output=(4, 12))}
    assert not caplog.records


def _older(name: str) -> nn.Module:
    layer = nn.Linear(16, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # they are deprecated, and models have them
        if name == "pruned":
            return prune.random_unstructured(layer, "weight", 0.5)
        return getattr(nn.utils, name)(layer)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm", "pruned"])
def test_hooks_that_make_the_weight_are_kept(name: str, device: str, caplog: pytest.LogCaptureFixture) -> None:
    layer, seen = _older(name), []
    layer.register_forward_pre_hook(lambda *args: seen.append(args))
    before = dict(layer._forward_pre_hooks)
    found = find_segments(nn.Sequential(layer, nn.GLU()).to(device), (X.to(device),))
    assert found == {"0": Segments(output=(16, 16))}
    assert not caplog.records and not seen
    assert layer._forward_pre_hooks == before


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm"])
def test_parametrizations_that_make_the_weight(name: str) -> None:
    layer = getattr(nn.utils.parametrizations, name)(nn.Linear(16, 32))
    assert find_segments(nn.Sequential(layer, nn.GLU()), (X,)) == {"0": Segments(output=(16, 16))}


def test_a_layer_that_runs_without_a_call_is_named(caplog: pytest.LogCaptureFixture) -> None:
    class ByMatmul(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.mT + self.bias

    with caplog.at_level(logging.WARNING, logger="segquant"):
        assert find_segments(nn.Sequential(ByMatmul(16, 8), nn.GLU()), (X,)) == {"0": Segments()}
    assert caplog.messages == ["not cut, since they run but no linear or conv2d takes their weight: 0"]
