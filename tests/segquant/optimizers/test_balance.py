"""Salience balancing: ranks and ρ against scipy, the temporal average against its formula, the balance's balance."""

from __future__ import annotations

from collections.abc import Callable

import numpy
import pytest
import scipy.stats
import torch

from segquant.observers.salience import TemporalSalience, average_ranks, spearman
from segquant.optimizers.balance import balance
from segquant.optimizers.smooth import smoothing


def tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_ties(*shape: int, seed: int = 0) -> torch.Tensor:
    return (2 * tensor(*shape, seed=seed)).round()


def test_ranks_are_scipys_with_ties_shared() -> None:
    values = with_ties(6, 40)
    expected = scipy.stats.rankdata(values.numpy(), axis=-1)
    assert numpy.array_equal(average_ranks(values).numpy(), expected)


@pytest.mark.parametrize("make", [tensor, with_ties])
def test_spearman_is_scipys(make: Callable[..., torch.Tensor]) -> None:
    a, b = make(5, 60), make(60, seed=1)
    expected = [scipy.stats.spearmanr(row, b.numpy()).statistic for row in a.numpy()]
    torch.testing.assert_close(spearman(a, b), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
    assert float(spearman(b, b.exp())) == pytest.approx(1) and float(spearman(b, -b)) == pytest.approx(-1)


def test_a_constant_side_has_no_correlation() -> None:
    assert spearman(torch.ones(2, 9), tensor(9)).tolist() == [0.0, 0.0]
    assert float(spearman(tensor(1), tensor(1))) == 0.0


def test_temporal_salience_is_the_weighted_mean_whatever_the_batching() -> None:
    items, weight = tensor(12, 30).abs(), tensor(30, seed=1).abs()
    eta = numpy.exp([-scipy.stats.spearmanr(row, weight.numpy()).statistic for row in items.numpy()])
    expected = torch.from_numpy(eta @ items.double().numpy() / eta.sum()).float()
    for sizes in ((12,), (1,) * 12, (5, 0, 7)):
        running = TemporalSalience(weight)
        for part in items.split(sizes):
            running.update(part)
        assert running.items == 12
        torch.testing.assert_close(running.value, expected, rtol=1e-6, atol=0)


def test_steps_unlike_the_weight_count_more() -> None:
    weight = torch.arange(1.0, 9.0)
    running = TemporalSalience(weight)
    alike, unlike = weight, weight.flip(0)
    running.update(torch.stack((alike, unlike)))
    share = float((running.value[0] - alike[0]) / (unlike[0] - alike[0]))
    assert share == pytest.approx(1 / (1 + numpy.exp(-2)), rel=1e-6)


def test_salience_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no input"):
        _ = TemporalSalience(torch.ones(3)).value


def test_both_sides_meet_at_the_geometric_mean() -> None:
    x, w = tensor(50).double().abs() + 0.01, tensor(50, seed=1).double().abs() + 0.01
    s = balance(x, w)
    torch.testing.assert_close(x / s, w * s)
    torch.testing.assert_close(x / s, (x * w).sqrt())
    # a linear is the same before rounding
    rows, weight = tensor(7, 50, seed=2).double(), tensor(9, 50, seed=3).double()
    torch.testing.assert_close((rows / s) @ (weight * s).T, rows @ weight.T)


def test_balance_is_smoothing_at_one_half_up_to_a_factor() -> None:
    x, w = tensor(50).abs(), tensor(50, seed=1).abs()
    x[3], w[7] = 0, 0
    ratio = balance(x, w) / smoothing(x, w, 0.5)
    torch.testing.assert_close(ratio, ratio[0].expand(50))


@pytest.mark.parametrize("x, w", [([0.0, 1.0], [1.0, 0.0]), ([0.0, 0.0], [1.0, 1.0]), ([1.0, 2.0], [0.0, 0.0])])
def test_dead_channels_get_usable_scales(x: list[float], w: list[float]) -> None:
    found = balance(torch.tensor(x), torch.tensor(w))
    assert found.dtype == torch.float32
    assert bool(torch.isfinite(found).all()) and bool((found > 0).all())
    if not any(x) or not any(w):
        assert found.tolist() == [1.0, 1.0]
