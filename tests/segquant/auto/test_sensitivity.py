"""How much of a layer's error arrives at the output, where that is known."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import segquant
from segquant.auto.sensitivity import guidance, output_gains
from segquant.errors import QuantizationError


class Sum(nn.Module):
    """Two branches of different weight, one of two layers, and a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large, self.last, self.idle = (nn.Linear(64, 64, bias=False) for _ in range(4))
        for layer in (self.small, self.large, self.last):
            nn.init.orthogonal_(layer.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.small(x) + 3 * self.last(self.large(x))
        return out, (out * 0).round().long()


def rows(seed: int) -> Tensor:
    return torch.randn(200, 64, generator=torch.Generator().manual_seed(seed))


def near(layer: nn.Module, size: float, seed: int) -> tuple[nn.Module, float]:
    """The layer with an error of `size`, and that."""
    other = copy.deepcopy(layer)
    noise = torch.randn(64, 64, generator=torch.Generator().manual_seed(100 + seed))  # rows have others
    with torch.no_grad():
        other.weight += size * noise / noise.norm() * other.weight.norm()  # type: ignore[operator]
    return other, size


def rounded(model: nn.Module, size: float = 0.02) -> dict[str, tuple[nn.Module, float]]:
    return {name: near(layer, size, seed) for seed, (name, layer) in enumerate(model.named_children())}


def test_gains_are_shares_of_the_output() -> None:
    torch.manual_seed(0)
    model = Sum().train()
    batches = [rows(1), rows(2)]
    layers = dict(model.named_children())
    seen: list[tuple[str, int, int]] = []
    gains = output_gains(model, batches, layers, rounded(model), progress=lambda *event: seen.append(event))
    exact = torch.cat([model(x)[0].detach() for x in batches]).norm()
    share = float(torch.cat([model.small(x).detach() for x in batches]).norm() / exact)
    assert gains["small"] == pytest.approx(share, rel=0.03)
    assert gains["large"] == pytest.approx(3 * share, rel=0.03) and gains["last"] == pytest.approx(3 * share, rel=0.03)
    assert gains["idle"] == 0 and model.training and dict(model.named_children()) == layers
    assert seen == [("sensitivity", done, 4) for done in range(1, 5)]
    exact_layer = {**rounded(model), "small": (copy.deepcopy(model.small), 0.0)}
    assert output_gains(model, batches, layers, exact_layer)["small"] == 0


def test_errors_add_up_to_that_of_the_output() -> None:
    torch.manual_seed(0)
    model, x = Sum(), rows(3)
    layers = dict(model.named_children())
    gains = output_gains(model, [x], layers, rounded(model))
    sizes = {"small": 0.03, "large": 0.01, "last": 0.02}
    noisy = copy.deepcopy(model)
    for seed, (name, size) in enumerate(sizes.items(), start=7):
        setattr(noisy, name, near(layers[name], size, seed)[0])
    found, plain = noisy(x)[0].detach(), model(x)[0].detach()
    expected = sum((gains[name] * size) ** 2 for name, size in sizes.items()) ** 0.5
    assert float((found - plain).norm() / plain.norm()) == pytest.approx(expected, rel=0.05)


class Guided(nn.Module):
    """What both halves of the batch get, and what the prompts' half alone gets."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.prompts = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
        nn.init.orthogonal_(self.both.weight)
        nn.init.orthogonal_(self.prompts.weight)

    def forward(self, x: Tensor) -> Tensor:
        text = torch.cat((torch.zeros_like(x[::2]), x[1::2]))
        return self.both(torch.cat((x[::2], x[::2]))) + self.prompts(text)


def test_guidance_makes_the_errors_of_prompts_larger() -> None:
    """u + s (c − u): what both halves share counts once, what only prompts bring s times."""
    torch.manual_seed(0)
    model, x = Guided(), rows(4)
    layers = dict(model.named_children())
    plain, guided = (
        output_gains(model, [x], layers, rounded(model), combine=combine) for combine in (None, guidance(4.0))
    )
    # without guidance: 2 of 2 halves against 1 of 2
    assert plain["prompts"] / plain["both"] == pytest.approx(0.5**0.5, rel=0.05)
    assert guided["prompts"] / guided["both"] == pytest.approx(4.0, rel=0.05)
    with pytest.raises(QuantizationError, match="a batch has 3; leave `combine` out"):
        segquant.guidance(2.0)(torch.zeros(3, 4))
    with pytest.raises(QuantizationError, match="guidance by nan is none"):
        segquant.guidance(float("nan"))
    with pytest.raises(QuantizationError, match="`combine` gave None; it gets the model's output"):
        output_gains(model, [x], layers, rounded(model), combine=lambda _: None)  # type: ignore[arg-type, return-value]


def test_auto_counts_what_the_sampler_takes() -> None:
    """With few bytes to spare they go to the layer whose error guidance makes larger."""
    torch.manual_seed(0)
    batches = [rows(seed) for seed in range(4)]
    chosen = {}
    for scale in (0.1, 30.0):
        model = Guided()
        torch.manual_seed(1)
        method = segquant.presets.gptq_mixed("w4a8", budget={"bytes": 1.0, "over": "formats"})
        outcome = segquant.quantize_with_outcome_(model, method, batches, {}, combine=guidance(scale))
        assert outcome.choices is not None
        chosen[scale] = {layer.layer: layer.bytes or 0 for layer in outcome.choices}
    assert chosen[0.1]["both"] > chosen[0.1]["prompts"] and chosen[30.0]["both"] < chosen[30.0]["prompts"]
