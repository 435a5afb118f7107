"""Headroom of static scales, by simulation: free where fresh rows are not clipped, a gain where they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from segquant import InputStats, Method, QuantLinear, presets
from segquant.optimizers.headroom import MARGINS, mean_excess

WIDTH, OUT = 64, 48
Draw = Callable[[int, torch.Generator], Tensor]


def gaussian(rows: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, WIDTH, generator=generator)


def uniform(rows: int, generator: torch.Generator) -> Tensor:
    return 2 * torch.rand(rows, WIDTH, generator=generator) - 1


def scaled(rows: int, generator: torch.Generator) -> Tensor:
    """Every call has a size of its own."""
    return gaussian(rows, generator) * (0.7 * torch.randn(1, generator=generator)).exp()


def heavy(rows: int, generator: torch.Generator) -> Tensor:
    """Every row has."""
    return gaussian(rows, generator) * (0.8 * torch.randn(rows, 1, generator=generator)).exp()


def ratios(make: Callable[..., Method], draw: Draw, calls: int, rows: int, seeds: Sequence[int]) -> Tensor:
    """Squared errors [seeds, (0, search)] of fresh rows."""
    found = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        linear, stats = nn.Linear(WIDTH, OUT, bias=False), InputStats("layer", WIDTH)
        with torch.no_grad():
            linear.weight.copy_(torch.randn(OUT, WIDTH, generator=generator) / WIDTH**0.5)
        for call in range(calls):
            stats.update(draw(rows, generator), call % 4)
        fresh = torch.cat([draw(rows, generator) for _ in range(max(512 // rows, 16))])
        with torch.no_grad():
            target = linear(fresh)
            layers = [
                QuantLinear.from_float(linear, make("w8a8_tensor", headroom=given), stats) for given in (0.0, "search")
            ]
            found.append([float((layer(fresh) - target).square().sum() / target.square().sum()) for layer in layers])
    return torch.tensor(found)


@pytest.mark.parametrize("draw, calls, rows, rotate", [
    (gaussian, 16, 64, False), (gaussian, 64, 2, False), (gaussian, 32, 2, False), (gaussian, 32, 2, True),
    (uniform, 64, 2, False), (uniform, 32, 2, False), (uniform, 32, 2, True),
])  # fmt: skip
def test_it_costs_less_than_a_hundredth_where_fresh_rows_are_hardly_clipped(
    draw: Draw, calls: int, rows: int, rotate: bool
) -> None:
    def make(precision: str, **settings: object) -> Method:
        return presets.rtn(precision, rotate=rotate, **settings)  # type: ignore[arg-type]

    found = ratios(make, draw, calls, rows, range(6)).sqrt()
    assert float(found[:, 1].sum() / found[:, 0].sum()) < 1.01


@pytest.mark.parametrize("draw", [scaled, heavy])
@pytest.mark.parametrize("calls, rows", [(8, 1), (32, 2)])
def test_it_gains_where_fresh_rows_are_clipped(draw: Draw, calls: int, rows: int) -> None:
    found = ratios(presets.rtn, draw, calls, rows, range(10))
    assert float(found[:, 1].sum() / found[:, 0].sum()) < 0.8


def _searched(precision: str, **settings: object) -> Method:
    return presets.smoothquant(precision, alpha="search", **settings)  # type: ignore[arg-type]


def test_under_a_searched_vector_too() -> None:
    found = ratios(_searched, scaled, 16, 2, range(6))
    assert float(found[:, 1].sum() / found[:, 0].sum()) < 0.9


def test_a_given_share_widens_every_static_scale() -> None:
    linear, stats = nn.Linear(WIDTH, OUT), InputStats("layer", WIDTH)
    stats.update(gaussian(64, torch.Generator().manual_seed(0)), None)
    for method in (presets.rtn("w8a8"), presets.smoothquant("w8a8"), presets.rtn("w8a8", rotate=True)):
        plain, wide = (QuantLinear.from_float(linear, method.changed(headroom=given), stats) for given in (0, 0.25))
        torch.testing.assert_close(wide.input_scale, plain.input_scale * 1.25)
        assert torch.equal(wide.codes, plain.codes)


def test_one_that_is_searched_is_of_the_margins() -> None:
    linear, stats = nn.Linear(WIDTH, OUT), InputStats("layer", WIDTH)
    for call in range(8):
        stats.update(heavy(1, torch.Generator().manual_seed(call)), call % 4)
    plain, wide = (QuantLinear.from_float(linear, presets.rtn("w8a8", headroom=h), stats) for h in (0.0, "search"))
    factor = float(wide.input_scale / plain.input_scale)
    assert min(abs(factor - margin) for margin in MARGINS) < 1e-5 and factor > 1


def test_dynamic_scales_have_none() -> None:
    linear = nn.Linear(WIDTH, OUT)
    for given in (0.5, "search"):
        layer = QuantLinear.from_float(linear, presets.rtn("w8a8_dynamic", headroom=given))
        assert torch.equal(layer.codes, QuantLinear.from_float(linear, presets.rtn("w8a8_dynamic")).codes)


@pytest.mark.parametrize("rate", [0.5, 2.0])
def test_the_mean_excess_of_an_exponential_tail_is_found(rate: float) -> None:
    """Its maxima's weighted spacings have the mean of what lies beyond any of its values."""
    generator = torch.Generator().manual_seed(0)
    maxima = torch.empty(2000, 4, 50).exponential_(rate, generator=generator).amax(-1).sort(descending=True).values
    means = [mean_excess(each) * each[0] for each in maxima.tolist()]
    assert sum(means) / len(means) == pytest.approx(1 / rate, rel=0.05)
    assert mean_excess([3.0]) == mean_excess([0.0, 0.0]) == mean_excess([2.0, 2.0, 2.0]) == 0
