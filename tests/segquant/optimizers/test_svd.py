"""The switch between the exact and the randomized low-rank branch, on weights of known spectra."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from segquant.optimizers.svd import low_rank, random_low_rank, truncated

SPECTRA: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "linear": lambda k: 1 - k / (len(k) + 1),
    "square root": lambda k: (k + 1) ** -0.5,
    "hyperbolic": lambda k: 1 / (k + 1),
    "exponential": lambda k: 0.9**k,
    "outliers on noise": lambda k: torch.where(k < 6, 20.0, 1.0) * (1 - k / (2 * len(k))),
}


def weight_of(spectrum: torch.Tensor, out: int, width: int) -> torch.Tensor:
    """A matrix with the given singular values and random singular vectors, float64."""
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(size, len(spectrum), generator=generator, dtype=torch.float64) for size in (out, width)]
    left, right = (torch.linalg.qr(side).Q for side in sides)
    return (left * spectrum) @ right.T


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("out, width", [(96, 160), (160, 96)])
@pytest.mark.parametrize("rank", [4, 16, 32])
def test_both_forms_reach_the_least_error(name: str, out: int, width: int, rank: int) -> None:
    spectrum = SPECTRA[name](torch.arange(96, dtype=torch.float64))
    weight = weight_of(spectrum, out, width)
    least = float(spectrum.sort(descending=True).values[rank:].norm())  # Eckart–Young
    for how, allowed in (("exact", 1e-5), ("randomized", 1e-2)):
        up, down = truncated(weight.float(), rank, how, seed=1)
        assert up.shape == (out, rank) and down.shape == (rank, width) and up.dtype == torch.float32
        error = float((weight - up.double() @ down.double()).norm())
        assert least * (1 - 1e-6) <= error <= least * (1 + allowed) + 1e-6 * float(spectrum.norm())


def test_the_switch_takes_the_named_form_and_passes_the_seed_on() -> None:
    weight = weight_of(SPECTRA["linear"](torch.arange(40.0, dtype=torch.float64)), 40, 50).float()
    for found, expected in (
        (truncated(weight, 5), low_rank(weight, 5)),
        (truncated(weight, 5, "randomized", 3), random_low_rank(weight, 5, 3)),
    ):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not torch.equal(truncated(weight, 5, "randomized", 3)[0], truncated(weight, 5, "randomized", 4)[0])


@pytest.mark.parametrize("how", ["exact", "randomized"])
def test_a_rank_beyond_the_weight_is_cut_to_it(how: str) -> None:
    weight = weight_of(torch.ones(7, dtype=torch.float64), 7, 30).float()
    up, down = truncated(weight, 99, how)
    assert up.shape == (7, 7)
    torch.testing.assert_close(up @ down, weight, rtol=1e-4, atol=1e-5)


def test_unknown_forms_and_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown svd 'random'; nearest: randomized"):
        truncated(torch.ones(3, 3), 1, "random")
    with pytest.raises(ValueError, match="rank 1 or more, not 0"):
        truncated(torch.ones(3, 3), 0)
