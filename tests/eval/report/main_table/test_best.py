"""Bold: only where intervals are apart, at comparable bytes."""

from __future__ import annotations

import random

import pytest

from segquant_bench.eval.report.main_table.best import best_runs
from segquant_bench.eval.report.main_table.columns import columns
from segquant_bench.eval.report.main_table.results_table import results_table
from segquant_bench.eval.results import Interval, RunResult
from tests.eval.report.support import psnr, run


def _runs(*rows: tuple[int | None, float, Interval | None]) -> list[RunResult]:
    return [
        run(job, f"m{job}", weight_bytes=size, metrics=(psnr(value, interval),))
        for job, (size, value, interval) in enumerate(rows)
    ]


def _bold(runs: list[RunResult]) -> list[str]:
    (quantity,) = (each for each in columns(runs) if each.key == "psnr")
    found = best_runs(quantity, runs)
    return [each.quantizer for each in runs if id(each) in found]


LOW, HIGH, HIGHER, TOUCHING = (30.0, (29.0, 31.0)), (33.0, (32.0, 34.0)), (36.0, (35.0, 37.0)), (31.0, (30.0, 32.0))


@pytest.mark.parametrize(
    ("rows", "bold"),
    [
        ([(1000, *LOW), (1010, *HIGH)], ["m1"]),
        ([(1000, *LOW), (1010, *TOUCHING)], []),
        ([(1000, *LOW), (1100, *HIGH)], []),  # better, with more bytes
        ([(1000, *HIGH), (1100, *LOW)], []),  # no rival at its bytes
        ([(1000, *LOW), (1010, *HIGH), (1200, *HIGHER), (1210, *HIGH)], ["m1", "m2"]),
        ([(1000, *HIGH), (1200, *HIGH), (1210, *HIGHER)], ["m2"]),
        ([(1000, *HIGHER), (1200, *HIGH), (1210, *LOW)], []),  # one of fewer bytes is better
        ([(1000, 30.0, None), (1010, *HIGH)], []),
        ([(1000, *LOW), (1010, 33.0, None)], []),
        ([(None, *LOW), (1010, *HIGH)], []),
        ([(1000, *HIGH)], []),
    ],
)
def test_who_is_bold(rows: list[tuple[int, float, Interval]], bold: list[str]) -> None:
    assert _bold(_runs(*rows)) == bold


@pytest.mark.parametrize("seed", range(30))
def test_no_row_with_as_few_bytes_reaches_a_bold_one(seed: int) -> None:
    generator = random.Random(seed)
    rows = []
    for _ in range(12):
        middle, width = generator.uniform(20, 40), generator.uniform(0.1, 3)
        rows.append((generator.randint(1000, 1100), middle, (middle - width, middle + width)))
    runs = _runs(*rows)
    bold = set(_bold(runs))
    for each, (size, _, (low, _)) in zip(runs, rows, strict=True):
        others = [row for row in rows if row != (size, *rows[runs.index(each)][1:])]
        beaten = all(high < low for other, _, (_, high) in others if other <= 1.02 * size)
        rival = any(size / 1.02 <= other <= 1.02 * size for other, _, _ in others)
        assert (each.quantizer in bold) == (beaten and rival)


def test_the_table_tells_bytes_letters_and_what_is_bold() -> None:
    table = results_table(_runs((1010, *HIGH), (1000, *LOW), (1500, *HIGHER)), judged=True)
    assert table.head == ("precision", "method", "size", "n", "psnr", "weights")
    assert [[cell.text for cell in line[1:3]] for line in table.rows] == [["m1", "a"], ["m0", "a"], ["m2", "–"]]
    assert [line[4].bold for line in table.rows] == [False, True, False]
