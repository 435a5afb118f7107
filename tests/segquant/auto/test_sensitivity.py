"""How much of a layer's error arrives at the output, where that is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from segquant.auto.sensitivity import output_gains


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


def noise_like(y: Tensor) -> Tensor:
    """White noise of norm 1."""
    noise = torch.randn(y.shape)
    return noise / noise.norm()


def test_gains_are_shares_of_the_output() -> None:
    torch.manual_seed(0)
    model = Sum().train()
    batches = [rows(1), rows(2)]
    layers = dict(model.named_children())
    seen: list[tuple[str, int, int]] = []
    gains = output_gains(model, batches, layers, progress=lambda *event: seen.append(event))
    exact = torch.cat([model(x)[0].detach() for x in batches]).norm()
    share = float(torch.cat([model.small(x).detach() for x in batches]).norm() / exact)
    assert gains["small"] == pytest.approx(share, rel=0.02)
    assert gains["large"] == pytest.approx(3 * share, rel=0.02) == gains["last"]
    assert gains["idle"] == 0 and model.training
    assert seen == [("sensitivity", done, 4) for done in range(1, 5)]
    assert output_gains(model, batches, layers) == gains, "seeded"


def test_errors_add_up_to_that_of_the_output() -> None:
    torch.manual_seed(0)
    model, x = Sum(), rows(3)
    gains = output_gains(model, [x], dict(model.named_children()))
    sizes = {"small": 0.03, "large": 0.01, "last": 0.02}
    handles = [
        getattr(model, name).register_forward_hook(lambda _, __, y, size=size: y + size * y.norm() * noise_like(y))
        for name, size in sizes.items()
    ]
    noisy = model(x)[0].detach()
    for handle in handles:
        handle.remove()
    plain = model(x)[0].detach()
    expected = sum((gains[name] * size) ** 2 for name, size in sizes.items()) ** 0.5
    assert float((noisy - plain).norm() / plain.norm()) == pytest.approx(expected, rel=0.05)
