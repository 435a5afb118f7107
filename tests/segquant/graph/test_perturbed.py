"""The output cuts of real denoisers against what a change of single channels does in their forward."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from segquant.graph.find import find_segments
from tests.segquant.graph.test_diffusers import MODELS

Way = Callable[[int], frozenset[int]]


class _Results(TorchDispatchMode):
    """The result of every operator, in the order of execution."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if "empty" not in str(func):  # whatever the memory held
            self.tensors += [leaf.clone() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        return result


def _results(model: nn.Module, inputs: dict[str, Any], layer: nn.Linear, channel: int | None) -> list[Tensor]:
    """The results of all operators of a forward in which one output channel of a layer is another."""
    change = torch.zeros(layer.out_features)
    if channel is not None:
        change[channel] = 0.5
    handle = layer.register_forward_hook(lambda module, args, output: output + change)
    with torch.no_grad(), _Results() as results:
        model(**inputs)
    handle.remove()
    return results.tensors


def _ways(model: nn.Module, inputs: dict[str, Any], layer: nn.Linear) -> Way:
    """For each output channel of a layer, the operators whose results are others if the channel is."""
    before = _results(model, inputs, layer, None)

    @cache
    def way(channel: int) -> frozenset[int]:
        after = zip(before, _results(model, inputs, layer, channel), strict=True)
        return frozenset(i for i, (old, new) in enumerate(after) if not torch.equal(old, new))

    return way


def _is_cut_there(way: Way, sizes: tuple[int, ...]) -> bool:
    """Whether each piece goes a way of its own, and its first and last channel the same one."""
    ends = [(way(high - size), way(high - 1)) for size, high in zip(sizes, accumulate(sizes), strict=True)]
    return all(first == last for first, last in ends) and len({first for first, _ in ends}) == len(ends)


@pytest.mark.parametrize("name", MODELS)
def test_each_output_piece_goes_its_own_way(name: str) -> None:
    """Brute force on the real forward; it says no of a cut that is one channel off, or that lacks a piece."""
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    model = model.eval()
    cuts = {key: found.output for key, found in find_segments(model, kwargs=inputs).items() if found.output}
    assert cuts
    for key, sizes in cuts.items():
        layer = model.get_submodule(key)
        assert isinstance(layer, nn.Linear)
        way = _ways(model, inputs, layer)
        assert _is_cut_there(way, sizes), key
        first, second, *rest = sizes
        assert not _is_cut_there(way, (first + 1, second - 1, *rest)), key
        assert not _is_cut_there(way, (first + second, *rest)), key
