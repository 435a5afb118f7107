"""What a report makes of its runs, by small runs made by hand: numbers, pairs, names and places."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segquant_bench.eval import load_results
from segquant_bench.eval.failures import Failure, load_failures
from segquant_bench.eval.files import save_tensors
from segquant_bench.eval.metrics.statistics import Difference
from segquant_bench.eval.report.comparing.comparisons import against_unquantized, compare_runs
from segquant_bench.eval.report.comparing.pairs import as_ratio, log_ratio
from segquant_bench.eval.report.drawing.canvas import rendered
from segquant_bench.eval.report.drawing.grid import grid_columns, grid_groups, picture_grid
from segquant_bench.eval.report.drawing.metric_plot import metric_plot
from segquant_bench.eval.report.main_table.best import best_runs
from segquant_bench.eval.report.main_table.columns import columns, output_error
from segquant_bench.eval.report.main_table.failed import failed_table
from segquant_bench.eval.report.main_table.results_table import results_table
from segquant_bench.eval.report.page.render import Page, render_page
from segquant_bench.eval.report.provenance import provenance
from segquant_bench.eval.report.runs.groups import group_key, quantized_parts, sort_runs
from segquant_bench.eval.report.runs.labels import labels, prompts_name
from segquant_bench.eval.report.runs.rows import row_prompts
from segquant_bench.eval.results import EvalResult, RunResult
from segquant_bench.eval.tables.table import number
from tests.eval.report.page.support import PageReader
from tests.eval.support import smooth_pictures, write_pictures
from tests.eval.sweep import run_record


def _run(job: int, quantizer: str, **values: Any) -> RunResult:
    given: dict[str, Any] = {
        "path": Path(f"/nowhere/{job}/results.json"), "name": quantizer, "model": "m", "precision": "w8a8",
        "dataset": "d", "seed": 0, "n_images": 2, "config_hash": str(job), "metrics": (),
        "layer_errors": {"a": 0.1, "b": 0.2}, "per_row_output_errors": (), "output_error": None, "stages": {},
        "artifacts": {}, "prompts": ("a", "b"), "weight_bytes": 10, "weight_bytes_float": 40, **values,
    }  # fmt: skip
    return RunResult(quantizer=quantizer, **given)


def _metric(name: str, value: float, **values: Any) -> EvalResult:
    given: dict[str, Any] = {"interval": None, "against": "reference", **values}
    return EvalResult(name, value, 2, "higher", backend="x", **given)


def _cells(run: RunResult, runs: Sequence[RunResult] = ()) -> dict[str, float | None]:
    return {each.key: cell.value for each in columns(runs or [run]) if (cell := each.cell(run)) is not None}


def test_groups_and_their_order() -> None:
    floats = [_run(job, "none", precision=name) for job, name in enumerate(("float32", "bfloat16"))]
    assert group_key(floats[0]) == group_key(floats[1])
    few, many = _run(0, "rtn", prompts=("z",)), _run(1, "rtn", prompts=("a", "b"))
    assert sort_runs([many, few]) == [few, many], "by the number of prompts first"
    parts = _run(0, "rtn", config={"quantize": ["vae", "denoiser", "controlnet"]})
    assert quantized_parts(parts) == ("denoiser", "controlnet", "vae")


def test_names_of_runs_that_share_theirs() -> None:
    judged = [_run(job, "rtn", name="x", config={"metric": {"bootstrap": job}}) for job in range(2)]
    assert list(labels(judged).values()) == ["rtn bootstrap=0", "rtn bootstrap=1"]
    stored = [_run(job, "rtn", name="x", config={"cache": f"/{job}"}) for job in range(2)]
    assert list(labels(stored).values()) == ["rtn cache=/0", "rtn cache=/1"]


def test_the_interval_of_an_output_error_has_the_prompts_spread() -> None:
    """Student's interval of the logarithm, by leaving out one prompt after the other; calls of one prompt tell less."""
    rows = (0.01, 0.02, 0.03, 0.04)
    cell = output_error(_run(0, "rtn", per_row_output_errors=rows, per_row_prompts=(0, 1, 2, 3), output_error=0.5))
    assert cell is not None and cell.interval is not None

    def edges(energies: np.ndarray) -> tuple[float, float]:
        squares, kept = np.square(rows) * energies, ~np.eye(4, dtype=bool)
        logs = np.log([squares[mask].sum() / energies[mask].sum() for mask in kept]) / 2
        half = 3.182446 * np.sqrt(3 * np.var(logs))
        return 0.5 * np.exp(-half), 0.5 * np.exp(half)

    assert cell.value == 0.5 and cell.interval == pytest.approx(edges(np.ones(4)), rel=1e-6)
    two = output_error(_run(0, "rtn", per_row_output_errors=rows, per_row_prompts=(0, 0, 1, 1), output_error=0.5))
    assert two is not None and two.interval is not None and two.interval[1] > 10 * cell.interval[1]
    energies = (9.0, 1.0, 2.0, 5.0)
    loud = replace(
        _run(0, "rtn", per_row_output_errors=rows, per_row_prompts=(0, 1, 2, 3), output_error=0.5),
        per_row_energies=energies,
    )
    weighed = output_error(loud)
    assert weighed is not None and weighed.interval == pytest.approx(edges(np.array(energies)), rel=1e-6)
    assert output_error(_run(0, "rtn", per_row_output_errors=rows, output_error=0.5)) == number(0.5), "prompts unknown"
    exact = output_error(_run(0, "rtn", per_row_output_errors=(0.0, 0.0), per_row_prompts=(0, 1), output_error=0.0))
    assert exact is not None and exact.interval is None


def test_older_results_have_as_many_calls_a_prompt_as_steps() -> None:
    rows = (0.01, 0.02, 0.03, 0.04)
    config = {"quantize": ["denoiser"], "calibration": {"held_out": 2, "steps_per_prompt": 2}}
    older = _run(0, "rtn", per_row_output_errors=rows, output_error=0.5, config=config)
    assert row_prompts(older) == (0, 0, 1, 1)
    every = {"calibration": {"held_out": 2, "steps_per_prompt": None}, "model": {"call": {"num_inference_steps": 2}}}
    assert row_prompts(replace(older, config=every)) == (0, 0, 1, 1)
    assert row_prompts(replace(older, config={"calibration": {"held_out": 3, "steps_per_prompt": 2}})) is None
    assert row_prompts(replace(older, config={})) is None
    assert row_prompts(replace(older, per_row_prompts=(5, 5, 5, 6))) == (5, 5, 5, 6)


def test_sizes_and_errors_of_several_components() -> None:
    parts = {
        "text_encoder": {"weight_bytes": 30, "weight_bytes_float": 60, "output_error": 0.1},
        "vae": {"weight_bytes": 5, "weight_bytes_float": 5, "output_error": 0.3},
    }
    both = {"quantize": ["denoiser", "text_encoder"]}
    known = _cells(_run(0, "rtn", components=parts, config=both))
    assert known["weight_mb"] == pytest.approx(40e-6) and known["compression"] == 2.5
    assert known["encoder_error"] == 0.3 and known["pipeline_mb"] == pytest.approx(35e-6)
    unknown = _cells(_run(0, "rtn", components={"vae": parts["vae"]}, config=both))
    assert "weight_mb" not in unknown and "compression" not in unknown


def test_unquantized_runs_are_never_the_best() -> None:
    runs = [
        _run(job, "none", metrics=(_metric("psnr", job + 1.0),), config={"metric": {"seed": job}}) for job in range(2)
    ]
    (psnr,) = (each for each in columns(runs) if each.key == "psnr")
    assert best_runs(psnr, runs) == set()


def test_ratios_of_what_both_have() -> None:
    assert log_ratio([1.0, 0.0, 2.0], [1.0, 1.0, 0.0], 0) is None
    gap = log_ratio([1.0, 0.0, 2.0, 4.0], [2.0, 1.0, 0.0, 8.0], 0)
    assert gap is not None and gap.n == 2 and as_ratio(gap)[0] == pytest.approx(0.5)
    assert as_ratio(Difference(1000.0, (0.0, 1000.0), 3)) == (np.inf, (1.0, np.inf))
    theirs = _run(0, "rtn", layer_errors={"b": 0.4, "c": 1.0, "d": 0.2}, per_row_output_errors=(0.1, 0.2))
    ours = _run(1, "segquant_g", layer_errors={"b": 0.2, "d": 0.1, "e": 1.0}, per_row_output_errors=(0.1, 0.2, 0.3))
    (found,), refused = compare_runs([theirs, ours])
    assert (found.metric, found.n, refused) == ("layer error", 2, []) and found.value == pytest.approx(0.5)


def _pairs(runs: Sequence[RunResult]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((each.ours, each.theirs) for each in compare_runs(runs)[0]))


def test_who_is_compared_with_whom() -> None:
    d, both, vae = (["denoiser"], ["denoiser", "vae"], ["vae"])
    runs = [_run(job, "rtn", config={"quantize": parts}) for job, parts in enumerate((d, both, vae))]
    assert _pairs(runs) == [("rtn+vae", "rtn"), ("rtn@vae", "rtn+vae")]
    variants = [
        _run(job, name, config={"quantizer": {"alpha": alpha}})
        for job, (name, alpha) in enumerate((name, alpha) for name in ("rtn", "segquant_g") for alpha in (1, 2))
    ]
    assert _pairs(variants) == [
        ("rtn alpha=2", "rtn alpha=1"), ("segquant_g alpha=1", "rtn alpha=1"), ("segquant_g alpha=1", "rtn alpha=2"),
        ("segquant_g alpha=2", "segquant_g alpha=1"), ("segquant_g alpha=2", "rtn alpha=1"),
    ]  # fmt: skip
    ours = [_run(job, name) for job, name in enumerate(("rtn", "segquant_a", "segquant_g"))]
    headlines = {(each.ours, each.theirs): each.headline for each in compare_runs(ours)[0]}
    assert headlines == {
        ("segquant_a", "rtn"): True, ("segquant_g", "rtn"): True, ("segquant_g", "segquant_a"): False,
    }  # fmt: skip


def _by(job: int, quantizer: str, engine: str | None = "auto", **quantizing: Any) -> RunResult:
    package = "segquant_bench.pipelines.peers" if quantizer == "sdnq" else "segquant.presets"
    config = {"quantizer": {"_target_": f"{package}.{quantizer}", **quantizing}}
    return _run(job, quantizer, config=config | ({} if engine is None else {"run": {"name": engine}}))


def _labels(runs: Sequence[RunResult]) -> list[str]:
    ordered, names = sort_runs(runs), labels(runs)
    return [names[id(run)] for run in ordered]


@pytest.mark.parametrize("engine", ["auto", "reference", None])
def test_one_engine_is_not_told(engine: str | None) -> None:
    """The unquantized model and other tools, which `auto` leaves to plain torch, may be of older runs."""
    ours = [_by(job, name, engine) for job, name in enumerate(("rtn", "segquant_g"))]
    for other in ("auto", "reference", None):
        runs = [*ours, _by(2, "none", other), _by(3, "sdnq", other)]
        assert _labels(runs) == ["unquantized", "rtn", "sdnq", "segquant_g"]
        assert {("segquant_g", "rtn"), ("segquant_g", "sdnq")} == set(_pairs(runs))


def test_several_engines_are_told_and_each_is_compared_with_its_own() -> None:
    runs = [_by(job, *each) for job, each in enumerate((
        ("none", "auto"), ("rtn", "auto"), ("rtn", None), ("sdnq", None), ("smoothquant", None), ("segquant_g", "auto"),
        ("segquant_g", "reference"),
    ))]  # fmt: skip
    assert _labels(runs) == [
        "unquantized", "rtn run=reference", "rtn run=auto", "smoothquant run=reference", "sdnq",
        "segquant_g run=reference", "segquant_g run=auto",
    ]  # fmt: skip
    assert set(_pairs(runs)) == {
        ("rtn run=auto", "rtn run=reference"),
        ("segquant_g run=reference", "rtn run=reference"),
        ("segquant_g run=reference", "smoothquant run=reference"),
        ("segquant_g run=reference", "sdnq"),
        ("segquant_g run=auto", "segquant_g run=reference"),
        ("segquant_g run=auto", "rtn run=auto"),
        ("segquant_g run=auto", "smoothquant run=reference"),
        ("segquant_g run=auto", "sdnq"),
    }
    folder = [_by(7, "none"), _by(8, "none", "reference")]
    assert sort_runs(folder) == folder[:1], "the same pictures"
    alphas = [_by(job, "rtn", engine, alpha=alpha) for job, (engine, alpha) in enumerate((("auto", 1), ("auto", 2)))]
    assert _labels(alphas) == ["rtn alpha=1", "rtn alpha=2"]


def test_a_page_says_which_kernels_ran() -> None:
    runs = [_run(0, "rtn", kernels=("cpu", "reference")), _run(1, "segquant_g", kernels=("cpu",)), _run(2, "none")]
    assert "quantized layers run by: cpu, reference" in provenance(runs)
    assert not any(sentence.startswith("quantized layers") for sentence in provenance(runs[2:]))


def test_a_run_alone_is_told_of_where_only_prompts_differ() -> None:
    ours = _run(1, "segquant_g", prompts=("c",))
    assert len(compare_runs([_run(0, "rtn"), ours])[1]) == 1
    assert compare_runs([_run(0, "rtn", model="another"), ours]) == ([], [])


def test_a_difference_to_the_unquantized_model_needs_its_interval() -> None:
    results = (_metric("clip_score", 1.0, delta=0.5), _metric("psnr", 1.0, delta=0.5, delta_interval=(0.1, 0.9)))
    assert [each.metric for each in against_unquantized([_run(0, "rtn", metrics=results)])] == ["psnr"]


def _evaluated(
    root: Path, quantizer: str, values: Sequence[Any], drawn: np.ndarray | None = None, **metadata: str
) -> RunResult:
    folder = root / quantizer
    folder.mkdir()
    (folder / "per_image.json").write_text(json.dumps({"metrics": {"psnr": list(values)}}))
    names = ("psnr", "fid_ref[net]", "glow") if drawn is not None else ("psnr", "glow")
    if drawn is not None:
        tensors = {f"replicates/{name}": drawn for name in names[1:]}
        save_tensors(folder / "features.safetensors", tensors, {"seed": "0", "n": "2", **metadata})
    metrics = tuple(_metric(name, 1.0) for name in names)
    return _run(0, quantizer, path=root / quantizer / "results.json", metrics=metrics, layer_errors={},
                artifacts={"evaluation": "."})  # fmt: skip


def test_only_alike_and_finite_values_are_compared(tmp_path: Path) -> None:
    drawn = np.array([1.0, 2.0, 3.0])
    folders = [tmp_path / name for name in ("alike", "seeds", "one", "infinite")]
    for folder in folders:
        folder.mkdir()
    found, refused = compare_runs(
        [_evaluated(folders[0], "rtn", [1, 2], drawn), _evaluated(folders[0], "segquant_g", [2, 4], drawn)]
    )
    assert {each.metric for each in found} == {"psnr", "fid_ref[net]", "glow"} and refused == []
    found, refused = compare_runs(
        [_evaluated(folders[1], "rtn", [1, 2], drawn), _evaluated(folders[1], "segquant_g", [2, 4], drawn, seed="1")]
    )
    assert {each.metric for each in found} == {"psnr"} and "differ in seed, n or replicates" in refused[0]
    found, refused = compare_runs(
        [_evaluated(folders[2], "rtn", [1, 2]), _evaluated(folders[2], "segquant_g", [2, 4], drawn)]
    )
    assert {each.metric for each in found} == {"psnr"} and refused == []
    found, refused = compare_runs(
        [_evaluated(folders[3], "rtn", [1, "inf"]), _evaluated(folders[3], "segquant_g", [2, "inf"])]
    )
    assert found == [] and [line for line in refused if "psnr is infinite" in line] == refused and len(refused) == 1


def test_an_infinite_distance_is_not_compared(tmp_path: Path) -> None:
    runs = [_evaluated(tmp_path, name, [1, 2], np.array([1.0, 2.0])) for name in ("rtn", "segquant_g")]
    endless = [replace(run, metrics=(_metric("fid_ref[net]", np.inf),)) for run in runs]
    found, refused = compare_runs(endless)
    assert found == [] and "fid_ref[net] is infinite" in refused[0]


@pytest.mark.parametrize("value", [30.0, np.inf])
def test_plots_of_infinite_numbers(value: float) -> None:
    run = _run(0, "rtn", metrics=(_metric("psnr", value, interval=(20.0, np.inf)),))
    drawn = metric_plot([run])
    assert drawn is not None and rendered(drawn)[1:4] == b"PNG"


def test_columns_by_judgement() -> None:
    runs = [_run(0, "rtn", precision="")]
    judged, cost = ({column.title for column in results_table(runs, which).columns} for which in (True, False))
    assert {"layer error"} == judged - cost and {"compression"} == cost - judged, "bytes stand in both"
    assert results_table(runs).rows[0][0].text == "–"


def test_failed_runs_tell_what_is_known() -> None:
    known = Failure(Path("/a/7/failure.json"), "n", "m", "d", "w8a8", "3", ("a=1", "b=2"), "why")
    bare = Failure(Path("/a/8/failure.json"), "", "m", "", "", "", (), "why not")
    rows = [[cell.text for cell in line] for line in failed_table([known, bare]).rows]
    assert rows == [["7", "n, m, d, seed 3", "a=1 b=2", "why"], ["8", "m", "", "why not"]]


def test_failures_behind_links_are_told_once(tmp_path: Path) -> None:
    (tmp_path / "runs" / "1").mkdir(parents=True)
    (tmp_path / "runs" / "1" / "failure.json").write_text(json.dumps({"message": "why", "seed": None}))
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    (failure,) = load_failures([tmp_path / "runs", tmp_path / "link"])
    assert (failure.message, failure.seed, failure.name) == ("why", "", "")


def _write(folder: Path, seconds: int, **values: Any) -> Path:
    folder.mkdir(parents=True)
    path = folder / "results.json"
    path.write_text(json.dumps(run_record("rtn", "w8a8", 8.0, ["a"], []) | values))
    os.utime(path, (seconds, seconds))
    return path


def test_the_later_of_two_runs_of_one_configuration_is_shown(tmp_path: Path) -> None:
    _write(tmp_path / "a" / "0", 200, config_hash="x", name="later")
    _write(tmp_path / "a" / "1", 100, config_hash="x", name="earlier")
    _write(tmp_path / "b" / "0", 100, config_hash="y", name="earlier")
    _write(tmp_path / "b" / "1", 200, config_hash="y", name="later")
    assert [run.name for run in load_results([tmp_path])] == ["later", "later"]
    for job in range(2):
        _write(tmp_path / "c" / str(job), 100, config_hash="", name="no hash")
    assert len(load_results([tmp_path / "c"])) == 2
    (tmp_path / "c" / "1" / "failure.json").write_text('{"message": "failed later"}')
    assert len(load_results([tmp_path / "c"])) == 1


def test_the_page_knows_each_pair() -> None:
    runs = [_run(job, name) for job, name in enumerate(("rtn", "gptq", "a<i>b", "segquant_g"))]
    found, _ = compare_runs(runs)
    page = render_page(Page(runs, found, Path("/nowhere")))
    assert "<i>" not in page and "a\\u003ci\\u003eb" in page and page.count("scope='row' class='key'>a&lt;i&gt;b<") == 1
    read = PageReader(page)
    names, pairs = [row["label"] for row in read.data("rows")["rows"]], read.data("pairs")
    told = [(names[a], names[b], pairs["metrics"][metric]) for a, b, metric, *_ in pairs["pairs"]]
    others = [(c.ours, c.theirs, {"layer error": "layer_error"}.get(c.metric, c.metric)) for c in found]
    assert told == others and {("segquant_g", "rtn", "layer_error"), ("segquant_g", "a<i>b", "layer_error")} <= set(
        told
    )
    assert [pair[3] for pair in pairs["pairs"]] == [c.amount for c in found]
    assert [pairs["verdicts"][pair[4]] for pair in pairs["pairs"]] == [c.verdict for c in found]


def test_grids_and_their_columns(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", smooth_pictures(2, 48, seed=0))
    artifacts = {"images": "images", "reference": "images"}
    given: dict[str, Any] = {"path": tmp_path / "results.json", "artifacts": artifacts}
    runs = [_run(0, "rtn", **given), _run(1, "gptq", **given), _run(2, "rtn", precision="w4a8", **given)]
    shown = [(column.title, column.subtitle) for column in grid_columns(runs)]
    assert shown == [("unquantized", ""), ("rtn", "w8a8"), ("gptq", "w8a8"), ("rtn", "w4a8")]
    (tmp_path / "grid.png").write_bytes(picture_grid(runs, 1))
    with Image.open(tmp_path / "grid.png") as grid:
        width = grid.width
    assert width == 190 + 4 * 96 + (24 + 8 + 24) + 8, "a wider gap where the precision changes; whole multiples of 48"
    others = [_run(job, "rtn", prompts=(f"{job}",)) for job in range(3)]
    name = prompts_name(others[2]).replace(" ", "-").replace("(", "").replace(")", "")
    assert list(grid_groups(others)) == ["grid.png", "grid_m_d_0.png", f"grid_m_d_0_{name}.png"]
