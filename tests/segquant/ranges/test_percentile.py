"""Percentile ranges against numpy's percentiles, and the cut of a weight into blocks."""

from __future__ import annotations

import numpy
import pytest
import torch

from segquant.ranges.blocks import map_blocks
from segquant.ranges.percentile import percentile_range, quantile

CUTS = [
    ((1,) * 6, (8,)),
    ((1,) * 6, (4, 4)),
    ((6,), (8,)),
    ((2, 4), (3, 5)),
    ((3, 3), (2,) * 4),
    ((1,) * 6, (7, 1)),
]


def tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("q", [0.0, 0.31, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("count", [1, 2, 10, 1001])
def test_quantile_is_numpys(q: float, count: int) -> None:
    values = tensor(3, count)
    numpy.testing.assert_allclose(quantile(values, q).numpy(), numpy.quantile(values.numpy(), q, axis=-1), rtol=1e-12)


@pytest.mark.parametrize("rows, columns", CUTS)
def test_blocks_are_the_blocks(rows: tuple[int, ...], columns: tuple[int, ...]) -> None:
    a, b = tensor(6, 8), tensor(6, 8, seed=1)
    found = map_blocks(lambda x, y: (x * y).sum(-1), (a, b), rows, columns)
    expected = [
        [(x * y).sum() for x, y in zip(top.split(columns, 1), under.split(columns, 1), strict=True)]
        for top, under in zip(a.split(rows), b.split(rows), strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_many_rows_are_done_in_parts_with_the_same_result() -> None:
    weight = tensor(150, 1024)
    found = map_blocks(lambda x: x.amax(-1), (weight,), (1,) * 150, (512, 512))
    assert torch.equal(found, weight.unflatten(1, (2, 512)).amax(-1))


def test_input_ranges_are_numpys_percentiles_by_sign_where_dual() -> None:
    rows = tensor(200, 12)
    rows[:, 5:] = torch.nn.functional.silu(rows[:, 5:])
    positive, negative = percentile_range(rows, (5, 7), (False, True), 99.0)
    plain, split = rows[:, :5].numpy(), rows[:, 5:].numpy()
    expected = numpy.percentile(numpy.abs(plain), 99)
    assert positive[0] == negative[0] == pytest.approx(expected, rel=1e-12)
    assert float(positive[1]) == pytest.approx(numpy.percentile(split[split > 0], 99), rel=1e-12)
    assert float(negative[1]) == pytest.approx(numpy.percentile(-split[split < 0], 99), rel=1e-12)


def test_an_outlier_is_cut_off() -> None:
    rows = tensor(1000, 4).float()
    rows[17, 2] = 1000.0
    positive, _ = percentile_range(rows.half(), (4,), (False,), 99.9)
    assert positive.dtype == torch.float32 and 2 < float(positive) < 6
    assert float(percentile_range(rows, (4,), (False,), 100)[0]) == 1000


def test_a_side_without_values_and_a_piece_of_zeros() -> None:
    positive, negative = percentile_range(torch.ones(5, 2), (1, 1), (True, False), 99.0)
    assert positive.tolist() == [1.0, 1.0] and negative.tolist() == [0.0, 1.0]
    assert [side.tolist() for side in percentile_range(torch.zeros(5, 2), (2,), (True,), 99.0)] == [[0.0], [0.0]]


@pytest.mark.parametrize("percentile", [0.0, -1.0, 100.5, float("nan")])
def test_percentiles_out_of_range_are_refused(percentile: float) -> None:
    with pytest.raises(ValueError, match="percentile must lie"):
        percentile_range(torch.ones(2, 2), (2,), (False,), percentile)
