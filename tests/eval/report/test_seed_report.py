"""A whole report of runs under several calibration seeds."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from segquant_bench.eval import load_results
from segquant_bench.eval.paper.curves import step_curves
from segquant_bench.eval.render import write_report
from segquant_bench.eval.report.runs.seeds import merge_seeds
from tests.eval.report.support import psnr, seeded, write


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """rtn and segquant_g at the same bytes under seeds 0, 1, 2, and gptq under seed 0 alone."""
    root = tmp_path_factory.mktemp("seeds")
    noise = np.random.default_rng(0).normal(size=(3, 7, 30))
    jobs = [(name, seed) for name in ("rtn", "segquant_g") for seed in range(3)] + [("gptq", 0)]
    for job, (name, seed) in enumerate(jobs):
        level = {"rtn": 30.0, "gptq": 31.0, "segquant_g": 34.0}[name]
        values = level + 0.1 * seed + noise[0, 0] + 0.1 * noise[1, job]
        layers = {f"l{i}": float(np.exp(noise[2, 0, i] - level / 10)) for i in range(8)}
        half = 2.0 * values.std() / np.sqrt(30)
        made = seeded(
            job, name, seed, metrics=(psnr(float(values.mean()), (values.mean() - half, values.mean() + half)),),
            layer_errors=layers, output_error=0.1, per_row_output_errors=(0.1, 0.11, 0.12 + seed), n_images=30,
        )  # fmt: skip
        write(root / str(job), made, {"psnr": list(values)})
    return root


def test_a_row_a_comparison_and_a_point_for_all_seeds(sweep: Path, tmp_path: Path) -> None:
    written = write_report([sweep], tmp_path, grid=False)
    table = written["table.md"].read_text()
    rows = [line for line in table.splitlines() if line.startswith("| w8a8 | segquant_g ")]
    assert len(rows) == 2 and "**34.0** ± 0.10 [" in rows[0] and "| 3 | 30 |" in rows[0], "one in each table"
    assert "standard deviation over seeds" in table
    comparisons = list(csv.DictReader(written["comparisons.csv"].read_text().splitlines()))
    found = {(row["b"], row["metric"]): row for row in comparisons if row["a"] == "segquant_g"}
    assert (found["rtn", "psnr"]["seeds"], found["gptq", "psnr"]["seeds"]) == ("3", "1")
    assert float(found["rtn", "psnr"]["value"]) == pytest.approx(4.0, abs=0.1) and found["rtn", "psnr"]["ahead"] == "a"
    assert float(found["rtn", "psnr"]["value.sd"]) < 0.1, "seeds that lift both cancel"
    lines = list(csv.DictReader(written["table.csv"].read_text().splitlines()))
    assert [line["calibration_seed"] for line in lines if line["method"] == "rtn"] == ["0+1+2", "0", "1", "2"]
    assert {line["size"] for line in lines if line["calibration_seed"] == "0+1+2"} == {"a"}
    assert "7 runs, 30 pictures each" in written["report.html"].read_text()
    assert {"metrics.png", "bytes.png"} <= set(written)


def test_curves_are_means_over_the_inputs_of_all_seeds(sweep: Path) -> None:
    runs = [replace(each, per_row_steps=(0, 1, 2)) for each in load_results([sweep])]
    (curves,) = step_curves(merge_seeds(runs)).values()
    assert {curve.label for curve in curves} == {"gptq", "rtn", "segquant_g"}
    by_label = {curve.label: curve.y for curve in curves}
    assert by_label["rtn"] == pytest.approx((0.1, 0.11, 1.12)) and by_label["gptq"] == pytest.approx((0.1, 0.11, 0.12))
