"""Which runs stand in one group: what their sampling and their judgement share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from segquant_bench.eval.report.comparing.comparisons import compare_runs
from segquant_bench.eval.report.runs.groups import data_key, group_key, setup, sort_runs
from segquant_bench.eval.report.runs.labels import labels, places
from segquant_bench.eval.results import RunResult
from segquant_bench.texts import plain

CONFIG: dict[str, Any] = {
    "model": {
        "call": {"height": 32}, "dtype": "float32", "scheduler": "ddim", "scheduler_settings": {"shift": 1.0},
        "pipeline": None, "control": {"scale": 0.5}, "path": "a", "batch_size": 2, "controls": 1,
    },
    "metric": {"bootstrap": 10}, "dataset": {"size": 4}, "stages": {"own": {"x": 1}}, "quantizer": {"alpha": 0.5},
}  # fmt: skip


def _run(job: int, quantizer: str, config: dict[str, Any], **values: Any) -> RunResult:
    given = {"name": quantizer, "precision": "w8a8", **values}
    return RunResult(
        path=Path(f"/nowhere/{job}/results.json"), model="m", quantizer=quantizer, dataset="d", seed=0, n_images=1,
        config_hash=str(job), metrics=(), layer_errors={"a": 0.1 + job, "b": 0.2}, per_row_output_errors=(),
        output_error=None, stages={}, artifacts={}, prompts=("a",), weight_bytes=1, weight_bytes_float=1, config=config,
        **given,
    )  # fmt: skip


def _with(section: str, key: str, value: Any) -> dict[str, Any]:
    return {**CONFIG, section: {**CONFIG[section], key: value}}


@pytest.mark.parametrize(
    ("key", "value"),
    [("call", {"height": 64}), ("dtype", "bfloat16"), ("scheduler", "euler"), ("scheduler_settings", {"shift": 3.0}),
     ("pipeline", "their_pkg.Pipeline"), ("control", {"scale": 1.0}), ("control", None)],
)  # fmt: skip
def test_runs_sampled_otherwise_are_a_group_of_their_own(key: str, value: Any) -> None:
    configs = (CONFIG, _with("model", key, value))
    runs = [_run(job, ("rtn", "segquant_g")[job % 2], configs[job // 2]) for job in range(4)]
    assert len({group_key(run) for run in runs}) == len({data_key(run) for run in runs}) == 2
    found, refused = compare_runs(runs)
    assert len(found) == 2 and not refused, "each with the one of its own sampling"
    assert len({places(runs)[id(run)] for run in runs}) == 2
    floats = [_run(job, "none", config) for job, config in enumerate(configs)]
    assert len(sort_runs(floats)) == 2


@pytest.mark.parametrize(("key", "value"), [("path", "b"), ("batch_size", 4), ("controls", 2)])
def test_what_is_no_sampling_does_not_part_runs(key: str, value: Any) -> None:
    runs = [_run(0, "rtn", CONFIG), _run(1, "segquant_g", _with("model", key, value))]
    assert setup(runs[0]) == setup(runs[1]) and len(compare_runs(runs)[0]) == 1
    assert set(places(runs).values()) == {""}


@pytest.mark.parametrize(
    ("section", "key", "rows"),
    [("metric", "bootstrap", 2), ("dataset", "size", 2), ("stages", "own", 2), ("quantizer", "alpha", 1)],
)  # fmt: skip
def test_an_unquantized_model_judged_otherwise_has_its_row(section: str, key: str, rows: int) -> None:
    runs = [_run(0, "none", CONFIG), _run(1, "none", _with(section, key, 99))]
    assert len(sort_runs(runs)) == rows
    assert sort_runs(runs)[0] is runs[0], "of equal ones the first"


def test_names_that_look_alike_on_one_line_are_told_apart() -> None:
    runs = [_run(0, "my\nmethod", CONFIG), _run(1, "my method", _with("metric", "bootstrap", 20))]
    names = labels(runs)
    assert [plain(names[id(run)]) for run in runs] == ["my method bootstrap=10", "my method bootstrap=20"]


def test_the_order_of_rows() -> None:
    """Precision, then denoiser alone before others, then somebody's own method behind all, then the folder's number."""
    own = {**CONFIG, "quantizer": {"_target_": "lab.rtn"}}
    both, other = ({**CONFIG, "quantize": parts} for parts in (["denoiser", "vae"], ["vae"]))
    runs = [
        _run(0, "none", CONFIG), _run(1, "rtn", CONFIG, precision="w8a8"), _run(2, "rtn", CONFIG, name="rtn"),
        _run(10, "rtn", CONFIG), _run(4, "segquant_g", CONFIG), _run(5, "rtn", own), _run(6, "rtn", both),
        _run(7, "rtn", other), _run(8, "rtn", CONFIG, precision="w4a8"),
    ]  # fmt: skip
    for order in (runs, runs[::-1], runs[4:] + runs[:4]):
        assert [int(run.path.parent.name) for run in sort_runs(order)] == [0, 1, 2, 10, 4, 5, 6, 7, 8]
