"""Every transform in float64: the float product stays, undo is the inverse, the Gram matrix is that of the rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from segquant.numerics.transform import Place, Transform
from segquant.transforms.chain import Chain, hides_range
from segquant.transforms.low_rank import LowRank
from segquant.transforms.regular_rotation import RegularRotation
from segquant.transforms.rotation import Rotation
from segquant.transforms.smoothing import Smoothing

RANKS = (3, 0, 1)
BRANCHES = (5, 2, 9)
KINDS: dict[str, tuple[Transform, ...]] = {
    "smoothing": (Smoothing(),),
    "rotation": (Rotation(),),
    "low_rank": (LowRank(RANKS),),
    "smoothing, rotation": (Smoothing(), Rotation()),
    "all": (Smoothing(), Rotation(), LowRank(RANKS)),
    "low rank first": (LowRank(RANKS), Smoothing(), Rotation()),
    "regular rotation": (RegularRotation(16),),
    "smoothing, regular rotation": (Smoothing(), RegularRotation(64)),
}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def place(transforms: tuple[Transform, ...], columns: tuple[int, ...], branch: int) -> Place:
    """The buffers that the transforms name, filled at random: positive where they divide, ±1 where they are signs."""
    empty = Place(sum(columns), columns, BRANCHES)
    tensors = {}
    for transform in transforms:
        for seed, (name, (shape, _)) in enumerate(transform.buffers(empty).items()):
            drawn = draw(*shape, seed=seed)
            tensors[name] = {"smooth": drawn.exp(), "rotation_signs": drawn.sign().to(torch.int8)}.get(name, drawn)
    return Place(sum(columns), columns, BRANCHES, branch, tensors)


@pytest.mark.parametrize("branch", range(len(BRANCHES)))
@pytest.mark.parametrize("columns", [(16,), (7,), (24, 8), (5, 32, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_product_stays_and_undo_is_the_inverse(kind: str, columns: tuple[int, ...], branch: int) -> None:
    chain = Chain(KINDS[kind], place(KINDS[kind], columns, branch))
    x, weight = draw(4, 6, sum(columns), seed=11), draw(BRANCHES[branch], sum(columns), seed=12)
    before = x.clone(), weight.clone()
    rows, beside = chain.run(x)
    product = rows @ chain.weight(weight).T
    for extra in beside:
        product = product + extra
    torch.testing.assert_close(product, x @ weight.T, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(rows, chain.rows(x), rtol=0, atol=0)
    torch.testing.assert_close(chain.undo(chain.weight(weight)), weight, rtol=1e-10, atol=1e-10)
    flat, moved = x.flatten(0, 1), rows.flatten(0, 1)
    torch.testing.assert_close(chain.gram(flat.T @ flat), moved.T @ moved, rtol=1e-10, atol=1e-9)
    assert torch.equal(x, before[0]) and torch.equal(weight, before[1])
    idle = kind == "low_rank" and not RANKS[branch] or kind == "regular rotation" and sum(columns) % 4
    assert idle or not torch.equal(chain.weight(weight), weight)


@pytest.mark.parametrize("kind", KINDS)
def test_extremes_are_those_of_the_rows_or_are_not_known(kind: str) -> None:
    chain = Chain(KINDS[kind], place(KINDS[kind], (24, 8), 0))
    x = draw(50, 32, seed=3)
    found = chain.extremes(x.amax(0).clamp_min(0), (-x.amin(0)).clamp_min(0))
    assert (found is None) == hides_range(KINDS[kind]) == any(each.mixes for each in KINDS[kind])
    if found is not None:
        rows = chain.rows(x)
        torch.testing.assert_close(found[0], rows.amax(0).clamp_min(0))
        torch.testing.assert_close(found[1], (-rows.amin(0)).clamp_min(0))


def test_operations() -> None:
    at = Place(48, (48,), BRANCHES)
    assert Smoothing().operations(at) == 0
    assert Rotation().operations(at) == 3 * 48 * 4  # three blocks of 16 = 2⁴ in each of three branches
    assert LowRank(RANKS).operations(at) == 3 * (48 + 5) + 1 * (48 + 9)


def test_a_half_that_is_none_and_ranks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="float16 or bfloat16, not 'float8'"):
        LowRank((1,), "float8")
    with pytest.raises(ValueError, match="ranks has 2 entries for 3 branches"):
        LowRank((1, 1)).buffers(Place(8, (8,), BRANCHES))
