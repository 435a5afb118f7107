"""Smoothing and low rank: exactness, the search, and optimality against torch's SVD."""

from __future__ import annotations

import pytest
import torch

from segquant import InputStats, QuantLinear, presets
from segquant.observers.stats import HeldOut
from segquant.optimizers import smooth, svd


def tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_smoothing_is_equation_4_up_to_a_common_factor() -> None:
    x, w = torch.tensor([1.0, 4.0, 9.0]), torch.tensor([2.0, 1.0, 5.0])
    for alpha in (0.0, 0.3, 1.0):
        expected = x**alpha / w ** (1 - alpha)
        found = smooth.smoothing(x, w, alpha)
        torch.testing.assert_close(found / found[0], expected / expected[0])
        assert float(found.log().mean()) == pytest.approx(0, abs=1e-6)


def test_smoothing_of_dead_channels_is_finite() -> None:
    for x, w in ((torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])), (torch.zeros(2), torch.ones(2))):
        for alpha in smooth.ALPHAS:
            found = smooth.smoothing(x, w, alpha)
            assert torch.isfinite(found).all() and (found > 0).all()


def split(rows: torch.Tensor) -> HeldOut:
    return HeldOut(rows.amax(0).clamp_min(0), (-rows.amin(0)).clamp_min(0), rows)


def test_search_tries_both_ends_and_takes_the_least_error() -> None:
    seen: list[torch.Tensor] = []
    weight, rows = tensor(4, 6), tensor(20, 6, seed=1)

    def simulate(smoothed: torch.Tensor) -> smooth.Layer:
        seen.append(smoothed)
        # an output that is exact only for the last candidate, α = 1
        return lambda part: lambda _: part.rows @ smoothed.T * (1 if len(seen) == 12 else 0.5)

    errors = smooth.alpha_errors(weight, [split(rows)], simulate)
    assert list(errors) == [None, *smooth.ALPHAS]
    assert smooth.best_alpha(errors) == 1.0 and smooth.ALPHAS[0] == 0.0
    assert errors[1.0] < 1e-6


def test_ties_go_to_no_smoothing() -> None:
    exact = lambda weight: lambda part: lambda _: part.rows @ weight.T  # noqa: E731
    assert smooth.best_alpha(smooth.alpha_errors(tensor(3, 3), [split(torch.zeros(5, 3))], exact)) is None


def test_one_call_leaves_nothing_to_search_on() -> None:
    linear, stats = torch.nn.Linear(6, 4), InputStats("layer", 6)
    stats.update(tensor(20, 6, seed=1), 0)
    searched, fixed = (
        QuantLinear.from_float(linear, presets.smoothquant("w8a8_tensor", alpha=alpha), stats)
        for alpha in ("search", smooth.DEFAULT_ALPHA)
    )
    assert torch.equal(searched.smooth, fixed.smooth) and torch.equal(searched.input_scale, fixed.input_scale)


@pytest.mark.parametrize("shape", [(20, 30), (30, 20)])
def test_low_rank_is_the_truncated_svd(shape: tuple[int, int]) -> None:
    weight = tensor(*shape)
    up, down = svd.low_rank(weight, 5)
    u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
    best = (u[:, :5] * s[:5]) @ v[:5]
    torch.testing.assert_close((up @ down).double(), best, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(up.norm(dim=0), down.norm(dim=1))


def test_random_low_rank_is_close_and_seeded() -> None:
    weight = tensor(60, 80) @ torch.diag(torch.linspace(3, 0.1, 80))
    exact, (up, down) = svd.low_rank(weight, 8), svd.random_low_rank(weight, 8, seed=3)
    best = (weight - exact[0] @ exact[1]).norm()
    assert best <= (weight - up @ down).norm() * (1 + 1e-6) <= 1.01 * best
    state = torch.get_rng_state()
    assert torch.equal(up, svd.random_low_rank(weight, 8, seed=3)[0])
    assert torch.equal(state, torch.get_rng_state())


def test_weighted_low_rank_is_optimal_in_the_outputs() -> None:
    target, x = tensor(12, 16), tensor(200, 16, seed=1) * torch.logspace(0, -1, 16)
    up, down = svd.weighted_low_rank(target, x.T @ x, 3)
    found = (x @ (target - up @ down).T).norm()
    # independent: the best rank-3 approximation of X targetᵀ itself lies in the span of X
    best = torch.linalg.svdvals(x @ target.T)[3:].norm()
    assert found == pytest.approx(float(best), rel=1e-4)


@pytest.mark.parametrize("rank", [4, 99])
def test_rank_beyond_the_layer_is_exact(rank: int) -> None:
    weight = tensor(4, 9)
    up, down = svd.low_rank(weight, rank)
    assert up.shape == (4, 4)
    torch.testing.assert_close(up @ down, weight, rtol=1e-5, atol=1e-6)
    assert torch.isfinite(torch.cat([t.flatten() for t in svd.low_rank(torch.zeros(4, 9), rank)])).all()
