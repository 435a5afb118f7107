"""Cuts of convolutions on small hand-built modules: channels are on dimension 1 of NCHW."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segquant.graph.find import find_segments
from segquant.graph.segments import Segments

X, TOKENS = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16)


class Convolutions(nn.Module):
    """A convolution `conv`, fed by a function of two others' outputs, and a function of what it gives."""

    def __init__(
        self,
        before: Callable[..., Tensor],
        after: Callable[..., Any] = lambda m, y: y,
        *,
        sizes: tuple[int, int] = (8, 12),
        conv: nn.Conv2d,
    ) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, sizes[0], 1), nn.Conv2d(4, sizes[1], 3, padding=1)
        self.norm = nn.GroupNorm(2, conv.in_channels)
        self.depth = nn.Conv2d(conv.in_channels, conv.in_channels, 3, padding=1, groups=conv.in_channels)
        self.last = nn.Conv2d(conv.out_channels, conv.out_channels, 3, padding=1, groups=conv.out_channels)
        self.conv, self.before, self.after = conv, before, after

    def forward(self, x: Tensor) -> Any:
        return self.after(self, self.conv(self.before(self, self.a(x), self.b(x))))


def _attention(m: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """Pixels as tokens, two heads, put back into a picture."""
    q = a.flatten(2).transpose(1, 2).unflatten(-1, (2, -1)).transpose(1, 2)
    merged = F.scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(2)
    return merged.transpose(1, 2).unflatten(-1, (8, 8))


def _skip(m: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a, b], 1)


SPLIT = ((8, 12), (None, None))
INPUTS: dict[str, tuple[Callable[..., Tensor], tuple[int, int], tuple[Any, Any, str | None]]] = {
    "skip concat": (_skip, (8, 12), (*SPLIT, None)),
    "skip concat, then norm and SiLU": (
        lambda m, a, b: F.silu(m.norm(_skip(m, a, b))),
        (8, 12),
        ((8, 12), ("silu", "silu"), "silu"),
    ),
    "skip concat, then upsampled": (
        lambda m, a, b: F.interpolate(_skip(m, a, b), scale_factor=2.0, mode="nearest"),
        (8, 12),
        (*SPLIT, None),
    ),
    "skip concat, then pooled": (lambda m, a, b: F.avg_pool2d(_skip(m, a, b), 2), (8, 12), (*SPLIT, None)),
    "skip concat, then padded": (lambda m, a, b: F.pad(_skip(m, a, b), (0, 1, 0, 1)), (8, 12), (*SPLIT, None)),
    "channels padded": (lambda m, a, b: F.pad(_skip(m, a, b), (0, 0, 0, 0, 0, 4)), (8, 8), (None, None, None)),
    "skip concat, then depthwise": (lambda m, a, b: m.depth(_skip(m, a, b)), (8, 12), (*SPLIT, None)),
    "concat of an activation": (
        lambda m, a, b: torch.cat([F.gelu(a), b], 1),
        (8, 12),
        ((8, 12), ("gelu", None), None),
    ),
    "concat of three, nested": (
        lambda m, a, b: torch.cat([_skip(m, a, b), a[:, :4]], 1),
        (8, 8),
        ((8, 8, 4), (None, None, None), None),
    ),
    "concat of rows": (lambda m, a, b: torch.cat([a, b], 2), (20, 20), (None, None, None)),
    "GELU": (lambda m, a, b: F.gelu(b), (8, 20), (None, None, "gelu")),
    "gated halves": (
        lambda m, a, b: (lambda h, g: h * F.silu(g))(*b.chunk(2, 1)),
        (8, 40),
        (None, None, "swiglu"),
    ),
    "attention over pixels": (_attention, (20, 8), ((10, 10), (None, None), None)),
    "sum": (lambda m, a, b: a + b, (20, 20), (None, None, None)),
}


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("pattern", INPUTS)
def test_input_cuts(pattern: str, kernel: int) -> None:
    before, sizes, (cut, activations, activation) = INPUTS[pattern]
    model = Convolutions(before, sizes=sizes, conv=nn.Conv2d(20, 6, kernel))
    found = find_segments(model, (X,))["conv"]
    assert found == Segments(input=cut, input_activations=activations, activation=activation)


@pytest.mark.parametrize(
    "groups, sizes, cut",
    [
        (1, (8, 12), (8, 12)),
        (5, (8, 12), (8, 12)),  # groups of 4
        (20, (7, 13), (7, 13)),  # depthwise
        (2, (10, 10), (10, 10)),
        (2, (8, 12), None),  # a cut in the middle of a group
        (4, (8, 12), None),
    ],
)
def test_input_cuts_of_grouped_convolutions_are_whole_groups(
    groups: int, sizes: tuple[int, int], cut: tuple[int, int] | None
) -> None:
    model = Convolutions(_skip, sizes=sizes, conv=nn.Conv2d(20, 20, 3, groups=groups)).eval()
    found = find_segments(model, (X,))["conv"]
    assert found.input == cut
    if cut is None:
        return
    with torch.no_grad():  # each output channel changes with one piece of the input only
        whole = torch.cat([model.a(X), model.b(X)], 1)
        base = model.conv(whole)
        reached = []
        for low, high in ((0, cut[0]), (cut[0], 20)):
            other = whole.clone()
            other[:, low:high] += 1
            reached.append((model.conv(other) != base).any(0).flatten(1).any(1))
    assert groups == 1 or not (reached[0] & reached[1]).any()


OUTPUTS: dict[str, tuple[Callable[..., Any], tuple[int, ...] | None]] = {
    "chunk of channels": (lambda m, y: y.chunk(2, dim=1), (6, 6)),
    "split of channels": (lambda m, y: y.split([4, 8], 1), (4, 8)),
    "chunk of rows": (lambda m, y: y.chunk(2, dim=2), None),
    "chunk of the last axis": (lambda m, y: y.chunk(2, -1), None),
    "channels last, then chunk": (lambda m, y: y.permute(0, 2, 3, 1).chunk(3, -1), (4, 4, 4)),
    "tokens, then chunk": (lambda m, y: y.flatten(2).transpose(1, 2).chunk(2, -1), (6, 6)),
    "depthwise, then chunk": (lambda m, y: m.last(F.silu(y)).chunk(2, 1), (6, 6)),
    "upsampled, then chunk": (lambda m, y: F.interpolate(y, scale_factor=2.0, mode="bilinear").chunk(2, 1), (6, 6)),
    "glu over channels": (lambda m, y: F.glu(y, 1), (6, 6)),
    "slices": (lambda m, y: (y[:, :3], y[:, 3:]), (3, 9)),
    "mixed by a matmul": (lambda m, y: (y.permute(0, 2, 3, 1) @ torch.ones(12, 12)).chunk(2, -1), None),
    "no cut": (lambda m, y: y * 2, None),
}


@pytest.mark.parametrize("pattern", OUTPUTS)
def test_output_cuts(pattern: str) -> None:
    after, expected = OUTPUTS[pattern]
    model = Convolutions(lambda m, a, b: b, after, conv=nn.Conv2d(12, 12, 3, padding=1))
    assert find_segments(model, (X,))["conv"] == Segments(output=expected)


def test_a_picture_without_batch_and_padding_by_name() -> None:
    class Unbatched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect")
            self.second = nn.Conv2d(10, 4, 3, padding="same")

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return self.second(torch.cat([self.first(x), x], 0)).chunk(2, 0)

    found = find_segments(Unbatched(), (X[0],))
    assert found == {"first": Segments(), "second": Segments(output=(2, 2), input=(6, 4))}


def test_a_weight_used_by_the_other_kind_of_operator_is_no_call() -> None:
    """A patch embedding run as a product: channels of the product are no channels of the convolution."""

    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.out = nn.Conv2d(4, 16, 2, stride=2), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            tokens = F.unfold(x, 2, stride=2).transpose(1, 2)
            return self.out(F.linear(tokens, self.patch.weight.flatten(1))).chunk(2, -1)

    assert find_segments(Patches(), (X,)) == {"patch": Segments(), "out": Segments(output=(2, 2))}
