"""AdaRound's pieces against autograd, brute force and the exact formats."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from segquant.calibrators.adaround import (
    Rounding,
    adaround,
    grid_cell,
    inverse_rectified_sigmoid,
    rectified_sigmoid,
    regulariser,
)
from segquant.calibrators.reconstruction import Reconstruction
from segquant.numerics import functional as F
from segquant.numerics.formats import QuantSpec
from segquant.ranges.amax import weight_scale
from tests.segquant import decoding
from tests.segquant.support import tensor


def test_rectified_sigmoid_reaches_both_ends_and_is_inverted() -> None:
    assert rectified_sigmoid(torch.tensor([-2.5, 0.0, 2.5])).tolist() == [0.0, 0.5, 1.0]
    h = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(rectified_sigmoid(inverse_rectified_sigmoid(h)), h)


@pytest.mark.parametrize("dtype", ["int8", "int4", "fp8"])  # of the others, test_grids.py
def test_cells_hold_their_values_between_neighbouring_codes(dtype: str) -> None:
    edge = F.code_max(dtype)
    values = torch.cat((tensor(500) * edge / 3, torch.tensor([0.0, edge, -edge, 2 * edge, -2 * edge, 1.0])))
    lower, gap = grid_cell(values, dtype)
    for end in (lower, lower + gap):
        assert torch.equal(F.fake_quantize(end, torch.ones(()), dtype), end)
    inside = values.clamp(F.code_min(dtype), edge)
    assert bool(((lower <= inside) & (inside <= lower + gap)).all())
    # neighbours: nothing on the grid lies strictly between
    middle = lower + gap / 2
    near = F.fake_quantize(middle, torch.ones(()), dtype)
    assert bool(((near == lower) | (near == lower + gap)).all())


def test_soft_weight_starts_at_the_float_weight_and_hard_at_the_nearest() -> None:
    weight = tensor(6, 40)
    scale = weight.abs().amax(1, keepdim=True) / 7
    rounding = Rounding(weight, scale, "int4")
    torch.testing.assert_close(rounding.soft().detach(), weight)
    torch.testing.assert_close(rounding.hard(), F.fake_quantize(weight, scale, "int4"))


@pytest.mark.parametrize("dtype", ["int3", "uint4", "fp4_e2m1", "nf4", "fp6_e3m2"])
@pytest.mark.parametrize("sign", [1, -1])
def test_soft_and_hard_weights_on_every_kind_of_grid(dtype: str, sign: int) -> None:
    """Scales may be negative (GGUF's), and codes may count from a least value."""
    weight = tensor(6, 40)
    low, high = decoding.low_and_high(dtype)
    offset = weight.amin(1, keepdim=True) if dtype[0] == "u" and sign > 0 else None
    base = weight if offset is None else weight - offset
    scale = sign * (weight.amax(1, keepdim=True) - weight.amin(1, keepdim=True)) / (high - low)
    rounding = Rounding(weight, scale, dtype, offset)
    nearest = torch.from_numpy(decoding.nearest((base / scale).double().numpy(), dtype)) * scale
    inside = ((base / scale) >= low) & ((base / scale) <= high)
    torch.testing.assert_close(rounding.soft().detach()[inside], weight[inside], rtol=1e-4, atol=1e-5)
    hard = rounding.hard() if offset is None else rounding.hard() - offset
    torch.testing.assert_close(hard.double(), nearest.double(), rtol=1e-5, atol=1e-6)
    assert inside.float().mean() > (0.3 if dtype[0] == "u" else 0.6)


@pytest.mark.parametrize("beta", [2.0, 3.7, 20.0])
def test_gradient_of_v_is_autograds(beta: float) -> None:
    weight, target = tensor(5, 7, seed=1).double(), tensor(5, 7, seed=2).double()
    rounding = Rounding(weight, torch.full((5, 1), 0.3, dtype=torch.float64), "int8")
    rounding.v += tensor(5, 7, seed=3)
    soft = rounding.soft()
    (gradient,) = torch.autograd.grad((soft - target).square().sum(), soft)
    rounding.descend(gradient, 0.1, beta)
    v = rounding.v.detach().clone().requires_grad_()
    h = (torch.sigmoid(v) * 1.2 - 0.1).clamp(0, 1)
    loss = (rounding.lower + rounding.gap * h - target).square().sum() + 0.1 * regulariser(h, beta).sum()
    (expected,) = torch.autograd.grad(loss, v)
    torch.testing.assert_close(rounding.v.grad, expected)


GENTLE = Reconstruction(batch=256)
"""The defaults, with as many rows as a call of a model has."""
PAPERS = Reconstruction(batch=32, steps=10_000, lr=0.001, strength=100, beta_start=20, warmup=0.2)
"""AdaRound's own (2004.10568, section 4.1); λ is relative to nearest rounding's error here."""


def correlated(rows: int, width: int, seed: int) -> Tensor:
    """Rows that vary along few directions, the same for all seeds."""
    few = tensor(rows, width // 4, seed=seed) @ tensor(width // 4, width, seed=99)
    return few + 0.1 * tensor(rows, width, seed=seed)


def squared_error(x: Tensor, weight: Tensor, found: Tensor) -> float:
    return float((x @ (weight - found).T).square().sum())


@pytest.mark.parametrize(
    ("dtype", "columns"),
    [("int4", (64,)), ("int4", (32, 32)), ("fp8", (64,)), ("int3", (64,)), ("nf4", (32, 32)), ("fp4_e2m1", (32, 32))],
)
def test_beats_nearest_rounding_on_fresh_correlated_rows(dtype: str, columns: tuple[int, ...]) -> None:
    weight, x, fresh = tensor(48, 64, seed=4), correlated(512, 64, 5), correlated(512, 64, 6)
    scale = weight_scale(weight, QuantSpec(dtype), (1,) * 48, columns)
    wide = F.expand_pieces(scale, columns)
    found = adaround(x, x @ weight.T, weight, wide, dtype, GENTLE)
    nearest = squared_error(fresh, weight, F.fake_quantize(weight, wide, dtype))
    assert squared_error(fresh, weight, found) < 0.5 * nearest
    assert torch.equal(found, adaround(x, x @ weight.T, weight, wide, dtype, GENTLE))  # the same again
    lower, gap = grid_cell(weight / wide, dtype)
    codes = F.dequantize(F.quantize(found, wide, dtype), torch.ones(()), dtype)
    torch.testing.assert_close(found, codes * wide)
    upper = F.fake_quantize(lower + gap, torch.ones(()), dtype)  # of nf4, gaps are rounded
    assert bool(((codes == lower) | (codes == upper)).all())


@pytest.mark.parametrize(("dtype", "share"), [("int4", 0.2), ("nf4", 0.3), ("fp4_e2m1", 0.3)])
def test_most_of_the_way_to_the_best_of_all_roundings(dtype: str, share: float) -> None:
    weight, x = tensor(32, 8, seed=7), tensor(256, 8, seed=8) + 2 * tensor(256, 1, seed=9)
    scale = weight.abs().amax(1, keepdim=True) / F.code_max(dtype)
    lower, gap = grid_cell(weight / scale, dtype)
    candidates = [(lower + gap * torch.tensor(bits)) * scale for bits in itertools.product((0.0, 1.0), repeat=8)]
    best = float(torch.stack([(x @ (weight - c).T).square().sum(0) for c in candidates]).amin(0).sum())
    nearest = squared_error(x, weight, F.fake_quantize(weight, scale, dtype))
    found = squared_error(x, weight, adaround(x, x @ weight.T, weight, scale, dtype, GENTLE))
    assert best <= found < best + share * (nearest - best)


def flipped_and_error(settings: Reconstruction) -> tuple[float, float]:
    """The share of weights that nearest rounding puts elsewhere, and the error against its on fresh rows."""
    weight, x, fresh = tensor(64, 96, seed=4), correlated(1024, 96, 5), correlated(1024, 96, 6)
    scale = weight.abs().amax(1, keepdim=True) / 7
    nearest, found = F.fake_quantize(weight, scale, "int4"), adaround(x, x @ weight.T, weight, scale, "int4", settings)
    moved = float(((found - nearest).abs() > scale / 2).float().mean())
    return moved, squared_error(fresh, weight, found) / squared_error(fresh, weight, nearest)


def test_the_default_budget_flips_what_has_to_be_flipped() -> None:
    moved, error = flipped_and_error(GENTLE)
    assert 0.1 < moved < 0.3 and error < 0.25


@pytest.mark.slow  # 10,000 steps
def test_the_default_budget_gets_where_the_papers_does() -> None:
    moved, error = flipped_and_error(GENTLE)
    theirs, their_error = flipped_and_error(PAPERS)
    assert moved > 0.8 * theirs and error < 1.15 * their_error


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"lr": 0.0}, "lr=0.0 must be positive"),
        ({"beta_start": 1.0}, "beta falls from start to end"),
        ({"held_out": 1.0}, "shares in"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Reconstruction(**values)


def test_schedules_run_from_start_to_end() -> None:
    settings = Reconstruction(steps=100, lr=0.1, warmup=0.2, beta_start=8, beta_end=2)
    assert settings.beta(0) == 8 and settings.beta(99) == pytest.approx(2)
    assert settings.rate(0) == pytest.approx(0.005) and settings.rate(19) == settings.rate(99) == 0.1
