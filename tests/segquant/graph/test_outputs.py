"""Output cuts on small hand-built modules, one for each pattern."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segquant.graph.find import find_segments
from segquant.graph.segments import Segments

X = torch.randn(2, 5, 16)


class Then(nn.Module):
    """linear, then a function of its output (and of the input)."""

    def __init__(self, out: int, function: Callable[..., Any], bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(16, out, bias=bias)
        self.function = function
        self.table = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x, self.linear(x))


OUTPUTS: dict[str, tuple[int, Callable[..., Any], tuple[int, ...] | None]] = {
    "chunk of the last axis": (6, lambda m, x, y: y.chunk(3, dim=-1), (2, 2, 2)),
    "chunk by positive axis": (6, lambda m, x, y: y.chunk(2, 2), (3, 3)),
    "chunk(2, 1) of pooled tokens": (6, lambda m, x, y: y[:, 0].chunk(2, 1), (3, 3)),
    "chunk of unequal sizes": (7, lambda m, x, y: y.chunk(3, -1), (3, 3, 1)),
    "chunk into one": (6, lambda m, x, y: y.chunk(1, -1), None),
    "chunk of tokens": (6, lambda m, x, y: y.chunk(5, 1), None),
    "split by size": (7, lambda m, x, y: y.split(3, -1), (3, 3, 1)),
    "split([4, 12])": (16, lambda m, x, y: y.split([4, 12], dim=-1), (4, 12)),
    "split with one piece unused": (16, lambda m, x, y: y.split([4, 12], dim=-1)[1], (4, 12)),
    "tensor_split": (7, lambda m, x, y: y.tensor_split([2, 3], -1), (2, 1, 4)),
    "unbind of unflattened": (6, lambda m, x, y: y.unflatten(-1, (3, 2)).unbind(-2), (2, 2, 2)),
    "select of unflattened": (6, lambda m, x, y: [y.view(2, 5, 3, 2)[:, :, i] for i in range(3)], (2, 2, 2)),
    "fused qkv": (
        48,
        lambda m, x, y: F.scaled_dot_product_attention(*y.reshape(2, 5, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)),
        (16, 16, 16),
    ),
    "q, k, v inside each head": (48, lambda m, x, y: y.view(2, 5, 4, 12).chunk(3, -1), None),
    "rotary halves": (16, lambda m, x, y: y.unflatten(-1, (4, 4)).unflatten(-1, (2, 2)).unbind(-1), None),
    "slices": (6, lambda m, x, y: (y[..., :2], y[..., 2:]), (2, 4)),
    "slices with narrow": (6, lambda m, x, y: (y.narrow(-1, 0, 1), y.narrow(-1, 1, 5)), (1, 5)),
    "slices that leave a gap": (6, lambda m, x, y: (y[..., :2], y[..., 3:]), None),
    "slices that overlap": (6, lambda m, x, y: (y[..., :4], y[..., 3:]), None),
    "every second channel": (6, lambda m, x, y: (y[..., ::2], y[..., 1::2]), None),
    "glu": (6, lambda m, x, y: F.glu(y), (3, 3)),
    "table added": (24, lambda m, x, y: (y.view(2, 5, 6, 4) + m.table).chunk(6, dim=2), (4,) * 6),
    "table added, 2-D": (
        24,
        lambda m, x, y: (m.table[None] + y[:, 0].reshape(2, 6, -1)).chunk(6, dim=1),
        (4,) * 6,
    ),
    "look-through": (
        6,
        lambda m, x, y: F.dropout(y.double().to(torch.float32).contiguous().clone()).unsqueeze(0).chunk(2, -1),
        (3, 3),
    ),
    "activation before": (6, lambda m, x, y: F.silu(y).chunk(2, -1), (3, 3)),
    "transposed": (6, lambda m, x, y: y.transpose(1, 2).chunk(2, 1), (3, 3)),
    "used whole too": (6, lambda m, x, y: (y.chunk(2, -1), y.sum()), (3, 3)),
    "cut twice alike": (6, lambda m, x, y: (y.chunk(2, -1), y.split(3, -1), y[..., :3], y[..., 3:]), (3, 3)),
    "cut twice unlike": (6, lambda m, x, y: (y.chunk(2, -1), y.chunk(3, -1)), None),
    "qkv and mlp, qkv cut again": (
        20,
        lambda m, x, y: (lambda qkv, mlp: (qkv.chunk(3, -1), F.gelu(mlp)))(*y.split([12, 8], -1)),
        (4, 4, 4, 8),
    ),
    "normalized before": (16, lambda m, x, y: F.layer_norm(y, (16,)).chunk(2, -1), None),
    "mixed by a matmul before": (16, lambda m, x, y: (y @ torch.ones(16, 16)).chunk(2, -1), None),
    "channels shifted by padding": (6, lambda m, x, y: F.pad(y, (1, -1)).chunk(2, -1), None),
    "tokens shifted by padding": (6, lambda m, x, y: F.pad(y, (0, 0, 1, -1)).chunk(2, -1), (3, 3)),
    "no cut": (6, lambda m, x, y: y * 2, None),
}


@pytest.mark.parametrize("pattern", OUTPUTS)
def test_output_cuts(pattern: str) -> None:
    out, function, expected = OUTPUTS[pattern]
    found = find_segments(Then(out, function), (X,))
    assert found == {"linear": Segments(output=expected)}


NO_PIECES_RETURNED = ("fused qkv", "glu", "used whole too")


@pytest.mark.parametrize("pattern", [k for k, c in OUTPUTS.items() if c[2] and k not in NO_PIECES_RETURNED])
def test_each_piece_is_one_output(pattern: str) -> None:
    """Brute force by gradients: each tensor that the model returns depends on the channels of one piece."""
    out, function, sizes = OUTPUTS[pattern]
    torch.manual_seed(0)
    model = Then(out, function).eval()
    edges = list(accumulate(sizes or (), initial=0))
    y = model.linear(X).detach().requires_grad_()
    flat: list[Tensor] = []
    torch.utils._pytree.tree_map(flat.append, function(model, X, y))
    owners = set()
    for piece in flat:
        (gradient,) = torch.autograd.grad(piece.sum(), y, retain_graph=True)
        channels = gradient.abs().amax((0, 1)).nonzero().flatten().tolist()
        owners.add((min(channels), max(channels) + 1))
    assert owners <= set(pairwise(edges))
