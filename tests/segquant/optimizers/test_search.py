"""The search of α: rows that judge, what is among the choices, and headroom beside it."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from segquant import InputStats, Method, QuantLinear, presets
from segquant.optimizers.search import SEEN_ROWS, seen
from segquant.optimizers.smooth import ALPHAS, smoothing
from tests.segquant.support import tensor

WIDTH, OUT, CALLS = 24, 16, 12


def calls(width: int = WIDTH, count: int = CALLS) -> list[Tensor]:
    sizes = torch.linspace(-1, 2, width).exp()
    return [tensor(10, width, seed=index) * sizes for index in range(count)]


def layer() -> tuple[nn.Linear, InputStats]:
    linear, stats = nn.Linear(WIDTH, OUT, bias=False), InputStats("layer", WIDTH)
    with torch.no_grad():
        linear.weight.copy_(tensor(OUT, WIDTH, seed=50))
    for index, x in enumerate(calls()):
        stats.update(x, index % 4)
    return linear, stats


def nearest(x: Tensor, high: float) -> Tensor:
    return (x / high * 127).round().clamp(-128, 127) * high / 127


def by_hand(linear: nn.Linear, rows: Tensor, alpha: float | None) -> float:
    """Squared output error of rows that set the ranges, at w8a8_tensor, in float64."""
    weight, x = linear.weight.detach().double(), rows.double()
    scale = torch.ones(WIDTH, dtype=torch.float64)
    if alpha is not None:
        scale = (x.abs().amax(0) ** alpha / weight.abs().amax(0) ** (1 - alpha)).double()
    moved, smoothed = x / scale, weight * scale
    output = nearest(moved, float(moved.abs().max())) @ nearest(smoothed, float(smoothed.abs().max())).T
    return float((output - x @ weight.T).square().sum())


def test_the_papers_search_is_the_least_error_on_the_rows_seen() -> None:
    linear, stats = layer()
    found = QuantLinear.from_float(linear, presets.smoothquant_plus("w8a8_tensor"), stats)
    errors = {alpha: by_hand(linear, torch.cat(calls()), alpha) for alpha in ALPHAS}
    best = min(errors, key=lambda alpha: errors[alpha])
    expected = smoothing(torch.maximum(stats.positive, stats.negative), linear.weight.detach().abs().amax(0), best)
    assert 0 < best < 1 and sorted(errors.values())[1] > 1.001 * errors[best]
    torch.testing.assert_close(found.smooth[0], expected)


@pytest.mark.parametrize("rows", ["seen", "held_out"])
def test_no_smoothing_is_chosen_only_where_it_is_among_the_choices(rows: str) -> None:
    """Inputs and weights that are alike in all channels have nothing to smooth."""
    linear, stats = nn.Linear(WIDTH, OUT, bias=False), InputStats("layer", WIDTH)
    with torch.no_grad():
        linear.weight.copy_(tensor(OUT, WIDTH, seed=3).sign())
    for index in range(CALLS):
        stats.update(tensor(10, WIDTH, seed=index).sign() * (1 + index / CALLS), index % 4)
    found = {}
    for none in (True, False):
        method = presets.smoothquant("w8a8_tensor", alpha="search", alpha_rows=rows, alpha_none=none)
        found[none] = QuantLinear.from_float(linear, method, stats).smooth
    assert torch.equal(found[True], torch.ones(1, WIDTH))  # ties go to none
    assert found[False].shape == (1, WIDTH)


def test_rows_held_out_clip_and_rows_seen_do_not() -> None:
    """One call far larger than the others: of the rows seen every one is within the range."""
    stats = InputStats("layer", WIDTH)
    for index, x in enumerate(calls()):
        stats.update(x * (20 if index == 5 else 1), index % 4)
    whole = seen(stats)
    assert bool((whole.rows <= whole.positive).all() and (-whole.rows <= whole.negative).all())
    assert any(bool((split.rows.abs().amax(0) > split.positive.maximum(split.negative)).any())
               for split in stats.held_out(rows=512, calls=99))  # fmt: skip
    assert len(stats.by_fold()) == 4 and sum(len(fold.rows) for fold in stats.by_fold()) == len(stats.sample)


def test_rows_seen_are_of_all_folds_and_not_too_many() -> None:
    stats = InputStats("layer", 2, reservoir=1200)
    for fold in range(4):
        stats.update(torch.full((300, 2), float(fold + 1)), fold)
    rows = seen(stats).rows
    assert len(rows) <= SEEN_ROWS and rows[:, 0].unique().tolist() == [1, 2, 3, 4]


def test_candidates_that_search_otherwise_do_not_share_what_they_found() -> None:
    pairs = itertools.product(("seen", "held_out"), (True, False))
    keys = {
        Method.of("m", "w8a8", optimizer="smooth", alpha_rows=rows, alpha_none=none).optimizer.search_key
        for rows, none in pairs
    }
    assert len(keys) == 4
