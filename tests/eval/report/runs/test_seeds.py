"""Runs that differ in the calibration's seed alone are one row."""

from __future__ import annotations

import csv
import io
import math
import statistics

import numpy as np
import pytest
from scipy import stats

from segquant_bench.eval.report.main_table.columns import columns, layer_error
from segquant_bench.eval.report.main_table.export import export_table
from segquant_bench.eval.report.main_table.results_table import results_table
from segquant_bench.eval.report.runs.labels import labels
from segquant_bench.eval.report.runs.seeds import merge_seeds, over_seeds
from segquant_bench.eval.tables.render_csv import to_csv
from segquant_bench.eval.tables.render_html import to_html
from segquant_bench.eval.tables.render_latex import to_latex
from segquant_bench.eval.tables.render_markdown import to_markdown
from tests.eval.report.support import psnr, run, seeded


def test_only_the_calibrations_seed_may_differ() -> None:
    alpha = {"quantizer": {"alpha": 0.5}}
    runs = [
        seeded(0, "rtn", 2), seeded(1, "rtn", 0), seeded(2, "rtn", 1, config={"cache": "/elsewhere"}),
        seeded(3, "rtn", 0, config=alpha), seeded(4, "gptq", 0), seeded(5, "gptq", 1, seed=7),
        seeded(6, "none", 0), seeded(7, "none", 1), run(8, "awq"), run(9, "awq"),
    ]  # fmt: skip
    merged = merge_seeds(runs)
    assert [each.quantizer for each in merged] == ["rtn", "rtn", "gptq", "gptq", "none", "none", "awq", "awq"]
    assert [each.config["calibration"]["seed"] for each in merged[0].seed_runs] == [0, 1, 2]
    assert not any(each.seed_runs for each in merged[1:])


def test_clones_elsewhere_and_settings_of_engines_that_older_runs_lack_are_no_difference() -> None:
    def shipped(clone: str) -> dict[str, object]:
        files = {"clip_path": f"{clone}/pipelines/zoo/emoji_clip"}
        return {"dataset": {"archive": f"{clone}/pipelines/zoo/emoji.zip"}, "metric": {"backends": files}}

    runs = [
        seeded(0, "rtn", 0, config={**shipped("/home/a"), "run": {"engine": "cpu"}}),
        seeded(1, "rtn", 1, config={**shipped("/scratch/b/segquant"), "run": {"engine": "cpu", "attention": "torch"}}),
        seeded(2, "rtn", 2, config={**shipped("/home/a"), "run": {"engine": "cpu", "attention": "int8"}}),
    ]
    assert [len(each.seed_runs) for each in merge_seeds(runs)] == [2, 0]
    own = [seeded(0, "rtn", 0, config={"dataset": {"archive": "/a/my.zip"}}),
           seeded(1, "rtn", 1, config={"dataset": {"archive": "/b/my.zip"}})]  # fmt: skip
    assert merge_seeds(own) == own


def test_runs_of_one_seed_that_differ_elsewhere_are_left() -> None:
    runs = [seeded(0, "rtn", 0), seeded(1, "rtn", 0), seeded(2, "rtn", 1)]
    assert merge_seeds(runs) == runs


def test_another_setting_is_told_and_seeds_are_not() -> None:
    alphas = [
        seeded(job, "rtn", job % 2, config={"quantizer": {"alpha": job // 2}}, weight_bytes=10 + job)
        for job in range(4)
    ]
    merged = merge_seeds([*alphas, seeded(9, "gptq", 1)])
    assert list(labels(merged).values()) == ["rtn alpha=0", "rtn alpha=1", "gptq"]


def test_the_interval_is_that_of_two_levels() -> None:
    values, halves = [40.0, 41.0, 43.0], [0.5, 0.6, 0.7]
    found = over_seeds(values, [(v - h, v + h) for v, h in zip(values, halves, strict=True)])
    sd = statistics.stdev(values)
    half = math.hypot(statistics.fmean(halves), stats.t.ppf(0.975, 2) * sd / math.sqrt(3))
    pictures, seeds = statistics.fmean(halves) / stats.norm.ppf(0.975), sd / math.sqrt(3)
    assert found.df == pytest.approx((pictures**2 + seeds**2) ** 2 / (seeds**4 / 2))
    assert (found.mean, found.sd) == pytest.approx((statistics.fmean(values), sd))
    assert found.interval == pytest.approx((found.mean - half, found.mean + half))
    same = over_seeds([1.0, 1.0], [(0.5, 2.0), (0.5, 2.0)])
    assert same.interval == pytest.approx((0.5, 2.0)) and same.sd == 0.0, "seeds that do not differ change nothing"
    assert over_seeds([math.inf, math.inf], [None, None]).interval is None
    assert over_seeds([1.0, 2.0], [None, (0.0, 3.0)]).interval is None


@pytest.mark.parametrize(
    ("seeds", "pictures", "rest"), [(0.0, 1.0, 0.5), (0.05, 1.0, 0.5), (0.1, 1.0, 1.0), (0.5, 0.5, 0.5)]
)
def test_the_interval_covers_the_mean_over_all_seeds_and_pictures(seeds: float, pictures: float, rest: float) -> None:
    """Simulated tables, three seeds on the same 64 pictures: 95 % as the interval claims, less 1.5 % by chance."""
    tables, n = 1500, 64
    drawn = np.random.default_rng(0).normal(size=(tables, 3 + n + 3 * n))
    values = seeds * drawn[:, :3, None] + pictures * drawn[:, None, 3 : 3 + n]
    values = values + rest * drawn[:, 3 + n :].reshape(tables, 3, n)
    means, halves = values.mean(-1), 1.96 * values.std(-1, ddof=1) / math.sqrt(n)
    hit = 0
    for mean, half in zip(means, halves, strict=True):
        found = over_seeds(list(mean), [(m - h, m + h) for m, h in zip(mean, half, strict=True)])
        assert found.interval is not None
        hit += found.interval[0] <= 0.0 <= found.interval[1]
    assert hit / tables >= 0.935


def _three() -> list:
    return [
        seeded(
            seed, "rtn", seed, metrics=(psnr(40.0 + seed, (39.0 + seed, 41.0 + seed)),), weight_bytes=1_000_000 + seed,
            layer_errors={"a": 0.1 + 0.1 * seed, "b": 0.2}, per_row_output_errors=(0.1, 0.2), output_error=0.1,
        )
        for seed in range(3)
    ]  # fmt: skip


def test_one_row_with_mean_and_spread() -> None:
    (merged,) = merge_seeds(_three())
    cells = {each.key: each.cell(merged) for each in columns([merged])}
    assert (cells["psnr"].value, cells["psnr"].sd) == (41.0, 1.0)
    assert cells["psnr"].interval == merged.metric("psnr").interval
    assert cells["psnr"].interval == pytest.approx((41 - math.hypot(1, 2.4841), 41 + math.hypot(1, 2.4841)), abs=1e-4)
    assert cells["weight_mb"].value == pytest.approx(1.000001) and cells["weight_mb"].interval is None
    assert layer_error(merged).value == pytest.approx(statistics.fmean(layer_error(each).value for each in _three()))
    table = results_table([merged, run(9, "gptq", metrics=(psnr(40.0),))])
    assert "seeds" in table.head and [line[table.head.index("seeds")].text for line in table.rows] == ["1", "3"]
    for render, told in ((to_markdown, "41.0 ± 1.00 ["), (to_html, "41.0 ± 1.00"), (to_latex, r"41.0 $\pm$ 1.00")):
        assert told in render(table)


def test_the_csv_has_a_line_for_each_seed_too() -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(export_table(merge_seeds(_three()))))))
    assert [line["calibration_seed"] for line in lines] == ["0+1+2", "0", "1", "2"]
    assert [float(line["psnr"]) for line in lines] == [41.0, 40.0, 41.0, 42.0]
    assert [line["psnr.sd"] for line in lines] == ["1.0", "", "", ""] and lines[0]["path"] == ""
    assert "calibration_seed" not in to_csv(export_table(_three()[:1]))
