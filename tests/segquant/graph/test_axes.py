"""Layouts against brute force: a tensor that holds its own channel index, reshaped and permuted by torch."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from segquant.graph.rules import axes


def _indices(layout: axes.Layout) -> torch.Tensor:
    """The channel index at every place of a tensor with this layout."""
    result = torch.zeros((), dtype=torch.long)
    for dimension in layout:
        axis = torch.zeros(1, dtype=torch.long)
        for size, stride in dimension:
            axis = (axis[:, None] + (torch.arange(size) * (stride or 0))[None]).flatten()
        result = result[..., None] + axis
    return result


@pytest.mark.parametrize("seed", range(40))
def test_random_walk_of_reshapes_and_permutes(seed: int) -> None:
    rng = random.Random(seed)
    shape = (2, rng.choice([1, 3, 4]), 24)
    layout: axes.Layout | None = axes.channels_on(len(shape) - 1, shape)
    tensor = torch.arange(24).expand(shape).contiguous()
    for _ in range(6):
        if rng.random() < 0.5:
            order = list(range(tensor.ndim))
            rng.shuffle(order)
            tensor, layout = tensor.permute(order), axes.permute(layout, order)
        else:
            target = _random_shape(tensor.numel(), rng)
            after = axes.reshape(layout, target)
            if after is None:
                continue
            tensor, layout = tensor.reshape(target), after
        assert torch.equal(_indices(layout), tensor)
        assert tuple(axes.size_of(d) for d in layout) == tuple(tensor.shape)
        assert axes.extent(layout) == 24


def _random_shape(numel: int, rng: random.Random) -> list[int]:
    shape = []
    while numel > 1:
        factor = rng.choice([n for n in range(2, numel + 1) if numel % n == 0])
        shape.append(factor)
        numel //= factor
    rng.shuffle(shape)
    return [*shape, 1] if rng.random() < 0.3 else shape


def test_reshape_is_refused_only_where_a_factor_is_torn() -> None:
    layout = axes.channels_on(1, (4, 6))
    for shape in itertools.product(range(1, 25), repeat=2):
        if shape[0] * shape[1] == 24:
            after = axes.reshape(layout, shape)
            if after is not None:
                assert torch.equal(_indices(after), torch.arange(6).expand(4, 6).reshape(shape))
    assert axes.reshape(layout, (6, 4)) is None  # rows would mix tokens and a third of the channels
    assert axes.reshape(layout, (5, 5)) is None
    assert axes.reshape(layout, (4, 6, 2)) is None


def test_outermost_stride() -> None:
    heads = axes.reshape(axes.channels_on(1, (2, 24)), (2, 3, 8))
    assert heads is not None
    assert axes.outermost_stride(heads, 1) == 8
    assert axes.outermost_stride(heads, 2) is None  # inside each head
    assert axes.outermost_stride(heads, 0) is None  # batch
    assert axes.outermost_stride(axes.channels_on(1, (2, 24)), 1) == 1


def test_broadcast_and_operand() -> None:
    layout = axes.channels_on(2, (2, 1, 6))
    wide = axes.broadcast(layout, (3, 2, 5, 6))
    assert wide == (axes.other(3), axes.other(2), axes.other(5), ((6, 1),))
    assert axes.operand(wide, (2, 1, 6)) == layout
    assert axes.operand(wide, (5, 1)) is None  # one value for all channels
    assert axes.broadcast(layout, (2, 4)) is None
    assert axes.broadcast(layout, (2, 1, 7)) is None
