"""find_segments: names, containers and layers called twice; it changes nothing and needs no weights."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from segquant.graph.find import find_segments
from segquant.graph.segments import Segments

X = torch.randn(2, 5, 16)


class Everything(nn.Module):
    """Kwargs only, a dataclass for output, a layer called twice, tied weights, a layer never called."""

    @dataclass
    class Output:
        sample: Tensor
        extra: dict[str, list[Tensor]]

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(16, 16)
        self.unlike = nn.Linear(16, 16)
        self.first, self.tied = nn.Linear(16, 16), nn.Linear(16, 16)
        self.tied.weight = self.first.weight
        self.never = nn.Linear(4, 4)
        self.shared = nn.ModuleList([self.never])
        self.norm = nn.BatchNorm1d(16)
        self.offset = torch.ones(16)

    def forward(self, *, sample: Tensor, scale: float = 1.0, extra: dict[str, Tensor] | None = None) -> Output:
        y = F.dropout(sample, 0.5, self.training) * scale
        a, b = self.twice(F.silu(y)).chunk(2, -1)
        c, d = self.twice(F.silu(torch.cat([a, b], -1) + self.offset)).split(8, -1)
        e, f = self.unlike(torch.cat([c, d], -1)).split([4, 12], -1)
        g = self.unlike(torch.cat([e, f], -1))
        h = self.norm(self.first(F.gelu(g)).mean(1))
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            i, j = self.tied(h).chunk(2, -1)
        noise = torch.rand_like(i)
        return self.Output(i + noise, {"rest": [j, extra["table"]] if extra else [j]})


EVERYTHING = {
    "twice": Segments(output=(8, 8), activation="silu"),
    "unlike": Segments(),
    "first": Segments(activation="gelu"),
    "tied": Segments(output=(8, 8)),
    "never": Segments(),
    "shared.0": Segments(),
}


def test_calls_names_and_containers(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="segquant"):
        found = find_segments(Everything(), kwargs={"sample": X, "extra": {"table": torch.ones(3)}})
    assert found == EVERYTHING
    assert list(found) == list(EVERYTHING)
    assert "unlike: its 2 calls disagree on output" in caplog.text
    assert "unlike: its 2 calls disagree on input" in caplog.text
    assert "twice: its 2 calls disagree on input" in caplog.text
    assert "twice: its 2 calls disagree on output" not in caplog.text
    assert "first" not in caplog.text


@pytest.mark.parametrize("where", ["meta", "fake", "meta weights", "meta arguments", "bfloat16", "parts on meta"])
def test_no_weights_needed(where: str) -> None:
    model, sample = Everything(), X
    if where in ("meta", "meta weights"):
        model = model.to("meta")
        model.offset = model.offset.to("meta")
    if where in ("meta", "meta arguments"):
        sample = sample.to("meta")
    if where == "parts on meta":
        model.first.to("meta")
    if where == "bfloat16":
        model, sample = model.bfloat16(), sample.bfloat16()
    if where == "fake":
        with FakeTensorMode(allow_non_fake_inputs=True):
            model, sample = Everything(), torch.randn(2, 5, 16)
    assert find_segments(model, kwargs={"sample": sample}) == EVERYTHING


@pytest.mark.parametrize("training", [False, True])
def test_nothing_changes(training: bool) -> None:
    model = Everything().train(training)
    model.never.eval()
    calls: list[str] = []
    model.first.register_forward_hook(lambda *args: calls.append("forward"))
    model.register_forward_pre_hook(lambda *args, **kwargs: calls.append("pre"), with_kwargs=True)
    before = copy.deepcopy(model.state_dict())
    objects = {name: id(value) for name, value in [*model.named_parameters(), *model.named_buffers()]}
    modes = {name: module.training for name, module in model.named_modules()}
    grads = {name: p.requires_grad for name, p in model.named_parameters()}
    random_state, sample = torch.get_rng_state(), X.clone()

    find_segments(model, kwargs={"sample": sample})

    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(sample, X)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert {name: id(v) for name, v in [*model.named_parameters(), *model.named_buffers()]} == objects
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: p.requires_grad for name, p in model.named_parameters()} == grads
    assert calls == []
    assert len(model.first._forward_hooks) == len(model._forward_pre_hooks) == 1
    assert torch.is_grad_enabled()


def test_weights_made_from_parameters() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)), nn.SiLU(), nn.Linear(16, 4))
    assert find_segments(model, (X,)) == {"0": Segments(), "2": Segments(activation="silu")}
    gated = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)), nn.GLU())
    assert find_segments(gated, (X,)) == {"0": Segments(output=(8, 8))}


def test_gradient_checkpointing_is_looked_into() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 6)

        def forward(self, x: Tensor) -> Any:
            return checkpoint(lambda t: self.linear(t).chunk(2, -1), x, use_reentrant=False)

    assert find_segments(Checkpointed(), (X,)) == {"linear": Segments(output=(3, 3))}


def test_pieces_of_a_layer_called_twice_keep_the_activations_that_agree() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            once = self.linear(torch.cat([F.gelu(x), F.silu(x)], -1))
            return once + self.linear(torch.cat([F.gelu(x), x], -1))

    expected = Segments(input=(16, 16), input_activations=("gelu", None))
    assert find_segments(Twice(), (X,)) == {"linear": expected}
