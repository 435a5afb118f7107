"""Factors folded into what makes the inputs of diffusers' models leave their outputs as they are."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from segquant.graph.capture.capture import capture
from segquant.graph.find_producers import find_producers
from tests.segquant.graph.every_denoiser import NOT_CAPTURED, TABLE, built
from tests.segquant.graph.test_producers import by_kind, with_factors

# One class asks for autocast to float32, which the CPU does not have.
pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")
ALWAYS = {
    "DiTTransformer2DModel": {"adaln"},
    "FluxTransformer2DModel": {"adaln"},
    "PixArtTransformer2DModel": {"linear"},
    "UNet2DConditionModel": {"linear", "norm"},
}
"""Kinds of producers of some; the others are slow."""


def outputs(model: Any, inputs: dict[str, Any]) -> Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        found = model(**copy.deepcopy(inputs))
    leaves = tree_leaves(tuple(found.values()) if isinstance(found, Mapping) else found)
    return torch.cat([leaf.float().flatten() for leaf in leaves if isinstance(leaf, Tensor)])


def check(name: str) -> set[str]:
    model, inputs = built(name)
    producers = find_producers(capture(model, (), copy.deepcopy(inputs)))
    exact, ours = outputs(model, inputs), outputs(with_factors(model, producers), inputs)
    assert torch.equal(ours.isfinite(), exact.isfinite())
    ours, exact = ours[ours.isfinite()], exact[exact.isfinite()]
    assert float((ours - exact).norm()) <= 1e-4 * float(exact.norm())
    return set(by_kind(producers))


@pytest.mark.parametrize("name", ALWAYS)
def test_folded_factors_leave_the_output(name: str) -> None:
    assert check(name) == ALWAYS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(TABLE) - set(ALWAYS) - set(NOT_CAPTURED)))
def test_folded_factors_leave_every_output(name: str) -> None:
    check(name)
