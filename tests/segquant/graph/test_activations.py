"""Activations found on small hand-built modules, one for each pattern."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segquant.graph.find import find_segments
from segquant.graph.segments import Segments

X = torch.randn(2, 5, 16)


def _written(y: Tensor, view: Callable[[Tensor], Tensor]) -> Tensor:
    """y, changed through a view of it."""
    view(y).neg_()
    return y


def _read_after(a: Tensor) -> Tensor:
    """A view of an activation, taken before the activation itself was changed."""
    y = F.silu(a)
    view = y[:, :2]
    y.neg_()
    return view


def _before_it_is_written(a: Tensor) -> Tensor:
    y = F.silu(a)
    z = y * 2
    y[..., :8].neg_()
    return z


class After(nn.Module):
    """linear, fed by a function of two other linear layers' outputs."""

    def __init__(self, features: int, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
        self.norm = nn.LayerNorm(features)
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(features, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.function(self, self.a(x), self.b(x)))


ACTIVATIONS: dict[str, tuple[int, Callable[..., Tensor], str | None]] = {
    "silu": (16, lambda m, a, b: F.silu(a), "silu"),
    "gelu": (16, lambda m, a, b: F.gelu(a), "gelu"),
    "gelu tanh": (16, lambda m, a, b: F.gelu(a, approximate="tanh"), "gelu"),
    "through look-through": (
        16,
        lambda m, a, b: m.dropout(F.silu(a).double().to(torch.float32))[:, :2],
        "silu",
    ),
    "geglu": (8, lambda m, a, b: (lambda h, g: h * F.gelu(g))(*a.chunk(2, -1)), "geglu"),
    "swiglu": (8, lambda m, a, b: (lambda h, g: F.silu(g) * h)(*a.chunk(2, -1)), "swiglu"),
    "swiglu of two layers": (16, lambda m, a, b: F.silu(a) * b, "swiglu"),
    "sigmoid approximation of gelu": (16, lambda m, a, b: a * torch.sigmoid(1.702 * a), "gelu"),
    "silu written out": (16, lambda m, a, b: torch.sigmoid(a) * a, "silu"),
    "gated by a sigmoid": (16, lambda m, a, b: a * torch.sigmoid(b), None),
    "scaled": (16, lambda m, a, b: F.silu(a) / 2, "silu"),
    "negated": (16, lambda m, a, b: F.silu(a) * -1.0, None),
    "one gate for all channels": (16, lambda m, a, b: a * F.silu(b[..., :1]), None),
    "normalized after": (16, lambda m, a, b: m.norm(F.silu(a)), None),
    "residual": (16, lambda m, a, b: a + F.silu(b), None),
    "relu": (16, lambda m, a, b: F.relu(a), None),
    "in place": (16, lambda m, a, b: F.silu(a, inplace=True), "silu"),
    "part negated in place": (16, lambda m, a, b: _written(F.silu(a), lambda y: y[..., :8]), None),
    "negated in place as another shape": (16, lambda m, a, b: _written(F.silu(a), lambda y: y.view(-1)), None),
    "a view, changed through the whole": (16, lambda m, a, b: _read_after(a), None),
    "read before it is changed": (16, lambda m, a, b: _before_it_is_written(a), "silu"),
    "another tensor changed in place": (16, lambda m, a, b: (_written(b, lambda y: y[..., :8]), F.silu(a))[1], "silu"),
    "tokens joined, alike": (16, lambda m, a, b: torch.cat([F.silu(a), F.silu(b)], 1), "silu"),
    "tokens joined, unlike": (16, lambda m, a, b: torch.cat([F.silu(a), b], 1), None),
}


@pytest.mark.parametrize("pattern", ACTIVATIONS)
def test_activations(pattern: str) -> None:
    features, function, expected = ACTIVATIONS[pattern]
    found = find_segments(After(features, function), (X,))["linear"]
    assert found == Segments(activation=expected)
