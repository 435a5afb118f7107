"""Input cuts on small hand-built modules, one for each pattern."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segquant.graph.find import find_segments
from segquant.graph.segments import Segments

X = torch.randn(2, 5, 16)


class After(nn.Module):
    """linear, fed by a function of two other linear layers' outputs."""

    def __init__(self, features: int, function: Callable[..., Tensor], sizes: tuple[int, int] = (16, 16)) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, sizes[0]), nn.Linear(16, sizes[1])
        self.norm = nn.LayerNorm(features)
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(features, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.function(self, self.a(x), self.b(x)))


def _attention(m: nn.Module, a: Tensor, b: Tensor, heads: int = 4) -> Tensor:
    q, v = a.view(2, 5, heads, -1).transpose(1, 2), b.view(2, 5, heads, -1).transpose(1, 2)
    return F.scaled_dot_product_attention(q, q, v)


def _bmm(m: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """Batch and heads on one dimension, as older attention code has it: [2, 5, 16] -> [2, 5, 16]."""
    q, v = (t.unflatten(-1, (4, 4)).transpose(1, 2).flatten(0, 1) for t in (a, b))
    return torch.bmm(torch.bmm(q, q.mT).softmax(-1), v).view(2, 4, 5, 4).transpose(1, 2).reshape(2, 5, 16)


def _einsum(m: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    q, v = a.view(2, 5, 4, 4), b.view(2, 5, 4, 4)
    weights = torch.einsum("bnhd,bmhd->bhnm", q, q).softmax(-1)
    return torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2)


def _linear_attention(m: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """Tokens last, a row of sums to divide by, as in Sana."""
    q, v = (t.transpose(1, 2).unflatten(1, (4, -1)) for t in (a, b))
    out = torch.matmul(torch.matmul(F.pad(v, (0, 0, 0, 1), value=1.0), q.mT), q)
    return (out[:, :, :-1] / (out[:, :, -1:] + 1e-6)).flatten(1, 2).transpose(1, 2)


def _tokens_split(m: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    merged = _attention(m, a, b).transpose(1, 2).reshape(2, -1, 16)
    return m.dropout(merged.split([2, 3], dim=1)[1].to(torch.float32))


def _sin_cos(m: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    angle = a[..., :8] * torch.exp(-math.log(10000.0) * torch.arange(8) / 8)
    embedding = torch.cat([angle.sin(), angle.cos()], dim=-1)
    return torch.cat([embedding[..., 8:], embedding[..., :8]], dim=-1).to(torch.float32)


Case = tuple[int, Callable[..., Tensor], tuple[int, int], tuple[int, ...] | None, tuple[str | None, ...] | None]
HEADS = ((4,) * 4, (None,) * 4)
INPUTS: dict[str, Case] = {
    "cat": (7, lambda m, a, b: torch.cat([a, b], -1), (3, 4), (3, 4), (None, None)),
    "concat by positive axis": (7, lambda m, a, b: torch.concat([a, b], dim=2), (3, 4), (3, 4), (None, None)),
    "hstack": (7, lambda m, a, b: torch.hstack([a[:, 0], b[:, 0]]), (3, 4), (3, 4), (None, None)),
    "cat of one": (4, lambda m, a, b: torch.cat([b], -1), (3, 4), None, None),
    "cat of tokens": (4, lambda m, a, b: torch.cat([a, b], 1), (4, 4), None, None),
    "cat of cat": (
        13,
        lambda m, a, b: torch.cat([torch.cat([a, b], -1), F.silu(b), m.dropout(a)[..., :2]], -1),
        (3, 4),
        (3, 4, 4, 2),
        (None, None, "silu", None),
    ),
    "cat then norm": (7, lambda m, a, b: m.norm(torch.cat([a, b], -1)), (3, 4), (3, 4), (None, None)),
    "cat then silu": (7, lambda m, a, b: F.silu(torch.cat([a, b], -1)), (3, 4), (3, 4), ("silu", "silu")),
    "cat with an activation, then norm": (
        7,
        lambda m, a, b: m.norm(torch.cat([F.gelu(a), b], -1)),
        (3, 4),
        (3, 4),
        (None, None),
    ),
    "cat of tokens of cats": (
        7,
        lambda m, a, b: torch.cat([torch.cat([a, b], -1), torch.cat([F.silu(a), b], -1)], 1),
        (3, 4),
        (3, 4),
        (None, None),
    ),
    "cat in the middle, moved": (
        7,
        lambda m, a, b: torch.cat([a.transpose(1, 2), b.transpose(1, 2)], 1).transpose(1, 2).contiguous(),
        (3, 4),
        (3, 4),
        (None, None),
    ),
    "cat plus a residual": (8, lambda m, a, b: torch.cat([a, a], -1) + b, (4, 8), None, None),
    "stack, flattened": (
        8,
        lambda m, a, b: torch.stack([a, b], -2).flatten(-2),
        (4, 4),
        (4, 4),
        (None, None),
    ),
    "stack, interleaved": (8, lambda m, a, b: torch.stack([a, b], -1).flatten(-2), (4, 4), None, None),
    "sin and cos": (16, _sin_cos, (16, 16), None, None),
    "a feature and sin, cos": (
        20,
        lambda m, a, b: torch.cat([b, _sin_cos(m, a, b)], -1),
        (16, 4),
        (4, 16),
        (None, None),
    ),
    "constants": (
        4,
        lambda m, a, b: torch.cat([torch.zeros(2, 2), torch.ones(2, 2)], -1),
        (4, 4),
        None,
        None,
    ),
    "heads, transpose and reshape": (
        16,
        lambda m, a, b: _attention(m, a, b).transpose(1, 2).reshape(2, -1, 16).to(torch.float32),
        (16, 16),
        *HEADS,
    ),
    "heads, permute and flatten": (
        16,
        lambda m, a, b: _attention(m, a, b).permute(0, 2, 1, 3).flatten(2, 3),
        (16, 16),
        *HEADS,
    ),
    "heads, view": (
        16,
        lambda m, a, b: _attention(m, a, b).transpose(1, 2).contiguous().view(2, 5, 16),
        (16, 16),
        *HEADS,
    ),
    "one head": (16, lambda m, a, b: _attention(m, a, b, 1).transpose(1, 2).flatten(2), (16, 16), None, None),
    "heads, bmm": (16, _bmm, (16, 16), *HEADS),
    "heads, einsum": (16, _einsum, (16, 16), *HEADS),
    "heads, linear attention": (16, _linear_attention, (16, 16), *HEADS),
    "heads, tokens split": (16, _tokens_split, (16, 16), *HEADS),
    "heads, gated": (
        16,
        lambda m, a, b: _attention(m, a, b).transpose(1, 2).flatten(2) * torch.sigmoid(b),
        (16, 16),
        *HEADS,
    ),
    "head and token axes confused": (
        16,
        lambda m, a, b: _attention(m, a, b).reshape(2, 5, 16),
        (16, 16),
        None,
        None,
    ),
    "patches of an image": (
        16,
        lambda m, a, b: a.view(2, 5, 4, 4).transpose(2, 3).flatten(2),
        (16, 4),
        None,
        None,
    ),
    "concat of heads and gelu": (
        24,
        lambda m, a, b: torch.cat([_attention(m, a, a).transpose(1, 2).flatten(2), F.gelu(b)], 2),
        (16, 8),
        (16, 8),
        (None, "gelu"),
    ),
    "channels shifted by padding": (7, lambda m, a, b: F.pad(torch.cat([a, b], -1), (-1, 1)), (3, 4), None, None),
    "no cut": (16, lambda m, a, b: a + b, (16, 16), None, None),
}


@pytest.mark.parametrize("pattern", INPUTS)
def test_input_cuts(pattern: str) -> None:
    features, function, sizes, expected, activations = INPUTS[pattern]
    found = find_segments(After(features, function, sizes), (X,))["linear"]
    assert (found.input, found.input_activations) == (expected, activations)
    assert found.output is None


class _Pieces(nn.Module):
    """A linear layer computed piece by piece, as its segments say."""

    def __init__(self, linear: nn.Linear, segments: Segments) -> None:
        super().__init__()
        self.linear, self.segments = linear, segments

    def forward(self, x: Tensor) -> Tensor:
        rows = self.segments.output or (self.linear.out_features,)
        columns = self.segments.input or (self.linear.in_features,)
        parts = []
        for weight in self.linear.weight.split(rows, dim=0):
            pairs = zip(x.split(columns, dim=-1), weight.split(columns, dim=1), strict=True)
            parts.append(sum(F.linear(part, block) for part, block in pairs))
        result = torch.cat(parts, dim=-1)
        return result if self.linear.bias is None else result + self.linear.bias


@pytest.mark.parametrize("pattern", [k for k, case in INPUTS.items() if case[3]])
def test_computing_the_pieces_gives_the_layer(pattern: str) -> None:
    features, function, sizes, *_ = INPUTS[pattern]
    model = After(features, function, sizes).eval()
    segments = find_segments(model, (X,))
    with torch.no_grad():
        expected = model(X)
        model.linear = _Pieces(model.linear, segments["linear"])
        torch.testing.assert_close(model(X), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pattern", [k for k, case in INPUTS.items() if case[3] == (4, 4, 4, 4)])
def test_each_piece_is_one_head(pattern: str) -> None:
    """Brute force: values of head i, changed, reach the channels of piece i and no others."""
    features, function, sizes, cut, _ = INPUTS[pattern]
    torch.manual_seed(0)
    model = After(features, function, sizes).eval()
    seen: list[Tensor] = []
    model.linear.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    scale = torch.ones(16)
    model.b.register_forward_hook(lambda module, args, output: output * scale)
    with torch.no_grad():
        model(X)
        for head in range(4):
            scale[:] = 1.0
            scale[4 * head : 4 * head + 4] = 1.5
            model(X)
    for head, changed in enumerate(seen[1:]):
        touched = (changed - seen[0]).abs().amax((0, 1)).nonzero().flatten().tolist()
        assert touched == list(range(4 * head, 4 * head + 4))
    assert cut is not None and len(seen) == 5


def test_a_way_of_thousands_of_operators() -> None:
    def long(m: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        y = torch.cat([a, b], -1)
        for _ in range(1500):
            y = torch.tanh(y) * b.mean()
        return y

    assert find_segments(After(7, long, (3, 4)), (X,))["linear"].input == (3, 4)
