from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image, ImageFont
from scipy.stats import norm, t

from segquant_bench.eval import EvalError, load_result, load_results
from segquant_bench.eval.cli import main
from segquant_bench.eval.render import write_report
from segquant_bench.eval.report.comparing.comparisons import against_unquantized, compare_runs
from segquant_bench.eval.report.comparing.evaluations import read_per_image, read_replicates
from segquant_bench.eval.report.drawing.grid import _font, wrap
from segquant_bench.eval.report.main_table.columns import columns, layer_error
from segquant_bench.eval.report.main_table.export import export_table
from segquant_bench.eval.report.main_table.results_table import results_table
from segquant_bench.eval.report.runs.groups import sort_runs
from segquant_bench.eval.results import EvalResult
from segquant_bench.eval.tables.numbers import format_number
from segquant_bench.eval.tables.render_csv import to_csv
from segquant_bench.eval.tables.render_latex import escape, to_latex
from segquant_bench.eval.tables.render_markdown import to_markdown
from tests.eval.report.page.support import PageReader
from tests.eval.sweep import write_sweep

NAMES = [
    "red apple, noto style",
    "cat & dog <b>bold</b>",
    "50% off_sale",
    "a | b",
    "egg",
    "boat",
    "door",
    "hat",
]
FID = "fid_ref[effnet_lite0]"


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("sweep"), NAMES)


@pytest.fixture
def moved(sweep: Path, tmp_path: Path) -> Path:
    """A copy elsewhere: nothing in a results folder may point to where it was made."""
    return Path(shutil.copytree(sweep, tmp_path / "moved"))


@pytest.fixture(scope="session")
def written(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The whole report of a copy that has nothing else in it."""
    root = tmp_path_factory.mktemp("written")
    return write_report([Path(shutil.copytree(sweep, root / "moved"))], root / "report")


def test_report_files(written: dict[str, Path]) -> None:
    assert set(written) == {
        "table.md", "table.csv", "table.tex", "comparisons.md", "comparisons.csv", "report.html", "metrics.png",
        "bytes.png", "grid.png",
        "layers.csv", "layers.md", "layers.tex",
    }  # fmt: skip
    assert all(path.stat().st_size > 100 for path in written.values())
    assert sorted(p.name for p in written["table.md"].parent.iterdir()) == sorted([*written, "runs.sqlite"])


def test_markdown_rows_are_sorted_and_complete(sweep: Path) -> None:
    text = to_markdown(results_table(load_results([sweep])))
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert len({len(line) for line in lines}) == 1
    assert [line[:2] for line in lines[2:]] == [
        ["float32", "unquantized"],
        ["w8a8_tensor", "rtn"], ["w8a8_tensor", "smoothquant"], ["w8a8_tensor", "segquant_g"],
        ["w4a8", "rtn"], ["w4a8", "smoothquant"], ["w4a8", "segquant_g"],
    ]  # fmt: skip
    head = lines[0]
    assert "fid_ref [effnet_lite0] ↓" in head and "psnr (dB) ↑" in head and "weights (MB) ↓" in head
    psnr = head.index("psnr (dB) ↑")
    assert lines[2][psnr] == "∞"
    assert [line[psnr].startswith("**") for line in lines[2:]] == [
        False,
        False,
        False,
        True,
        False,
        False,
        True,
    ]
    assert re.fullmatch(r"\*\*\d+\.\d\*\* \[\d+\.\d, \d+\.\d\]", lines[5][psnr])
    assert lines[5][head.index("weights (MB) ↓")] == "14.5"
    assert lines[5][head.index("compression (×) ↑")] == "3.87"
    assert lines[5][head.index("quantize (s) ↓")] == "11.0"


def test_csv_has_full_precision(sweep: Path) -> None:
    runs = sort_runs(load_results([sweep]))
    rows = list(csv.DictReader(io.StringIO(to_csv(export_table(runs)))))
    assert len(rows) == len(runs) == 7
    for row, run in zip(rows, runs, strict=True):
        psnr = run.metric("psnr")
        assert float(row["psnr"]) == psnr.value
        if psnr.interval:
            assert (float(row["psnr.low"]), float(row["psnr.high"])) == psnr.interval
        assert float(row["quantize.seconds"]) == run.stages["quantize"]["seconds"]
    assert rows[0]["layer_error"] == "" and float(rows[1]["layer_error"]) > 0


def test_latex_is_booktabs_and_escaped(sweep: Path) -> None:
    text = to_latex(results_table(load_results([sweep]), judged=True))
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1
    assert text.count(r"\midrule") == 3
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    spec = re.search(r"\{tabular\}\{([lr]+)\}", text).group(1)
    assert {line.count("&") for line in body} == {len(spec) - 1}
    assert r"segquant\_g" in text and r"fid\_ref" in text and r"$\downarrow$" in text and r"$\infty$" in text
    assert not re.search(r"(?<!\\)_", text)
    assert text.count("{") == text.count("}")


def test_latex_escape() -> None:
    assert escape(r"a_b & 50% #1 {x} ~ ^ \ $") == (
        r"a\_b \& 50\% \#1 \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{} \$"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (7e-15, "0"), (1e-5, "0.00001"),
     (31.234, "31.2"), (1234.5, "1234"), (123.45, "123.5"), (0.0123, "0.0123"), (1.0, "1.00"),
     (0.5, "0.500"), (float("inf"), "∞"), (-2.345, "-2.35")],
)  # fmt: skip
def test_numbers_are_readable(value: float, text: str) -> None:
    assert format_number(value) == text


def test_comparisons_say_what_was_built_in(sweep: Path) -> None:
    found, refused = compare_runs(load_results([sweep]))
    assert refused == []
    by = {(c.theirs, c.precision, c.metric): c for c in found}
    assert {c.ours for c in found} == {"segquant_g"}
    assert {c.theirs for c in found} == {"rtn", "smoothquant"}
    psnr = by["smoothquant", "w8a8_tensor", "psnr"]
    amount = r"\+\d\.\d\d dB \[\+\d\.\d\d, \+\d\.\d\d\]"
    pattern = rf"segquant_g vs smoothquant at w8a8_tensor: psnr {amount} better \(n=8\)"
    assert re.fullmatch(pattern, psnr.sentence())
    # The fixture's layer errors are in the ratio of the noise, 8 to 16, for every layer.
    layers = by["smoothquant", "w4a8", "layer error"]
    assert layers.value == pytest.approx(0.5) and layers.verdict == "better" and layers.n == 40
    assert layers.sentence().endswith("layer error ×0.500 [0.500, 0.500] better (n=40 layers)")
    assert (("rtn", "w4a8", FID) in by) and by["rtn", "w4a8", FID].n == 8


def test_psnr_comparison_is_the_paired_bootstrap(sweep: Path) -> None:
    runs = {(r.quantizer, r.precision): r for r in load_results([sweep])}
    ours, theirs = runs["segquant_g", "w4a8"], runs["rtn", "w4a8"]
    found, _ = compare_runs([ours, theirs])
    (psnr,) = (c for c in found if c.metric == "psnr")
    gaps = read_per_image(ours, "psnr") - read_per_image(theirs, "psnr")
    rng = np.random.default_rng(123)
    means = [gaps[rng.integers(0, 8, 8)].mean() for _ in range(4000)]
    assert psnr.value == pytest.approx(gaps.mean())
    wider = t.ppf(0.975, 7) / norm.ppf(0.975) * np.sqrt(8 / 7)  # for eight pictures
    edges = gaps.mean() + (np.quantile(means, [0.025, 0.975]) - gaps.mean()) * wider
    assert psnr.interval == pytest.approx(edges, abs=0.15 * gaps.std())


def test_fid_comparison_uses_joint_resamples(sweep: Path) -> None:
    runs = {(r.quantizer, r.precision): r for r in load_results([sweep])}
    ours, theirs = runs["segquant_g", "w4a8"], runs["smoothquant", "w8a8_tensor"]
    # The fixture gives these two runs the same pictures, so every joint resample agrees.
    assert read_replicates(ours, FID)[0] == pytest.approx(read_replicates(theirs, FID)[0])


def test_other_prompts_stand_apart(moved: Path, tmp_path: Path) -> None:
    path = moved / "3" / "results.json"
    record = json.loads(path.read_text())
    record["prompts"][0] = "another prompt"
    path.write_text(json.dumps(record))
    runs = load_results([moved])
    found, refused = compare_runs(runs)
    assert {c.precision for c in found} == {"w4a8"}
    assert len(refused) == 1
    assert re.match(r"segquant_g at w8a8_tensor on 8 prompts \(\w{6}\), because .* different prompts", refused[0])
    table = results_table(runs)
    alone = sort_runs(runs).index(next(run for run in runs if run.prompts[0] == "another prompt"))
    assert table.head[0] == "prompts"
    assert not any(cell.bold for cell in table.rows[alone])
    written = write_report([moved], tmp_path / "report", rows=1)
    assert sorted(name for name in written if name.startswith("grid")) == ["grid.png", "grid_emoji_sd3_emoji_0.png"]


def _second_model(moved: Path) -> None:
    """The same sweep again, of another model whose SegQuant is no better than rounding."""
    for job in range(7):
        shutil.copytree(moved / str(job), moved / "flux" / str(job))
        path = moved / "flux" / str(job) / "results.json"
        record = json.loads(path.read_text())
        if record["quantizer"] == "segquant_g":
            record["layer_errors"] = {layer: 3 * error for layer, error in record["layer_errors"].items()}
        record |= {"model": "emoji_flux", "config_hash": "flux" + record["config_hash"]}
        path.write_text(json.dumps(record))


def test_models_are_told_apart_everywhere(moved: Path, tmp_path: Path) -> None:
    _second_model(moved)
    found, refused = compare_runs(load_results([moved]))
    assert refused == []
    layers = {(c.where, c.theirs): c for c in found if c.metric == "layer error" and c.precision == "w8a8_tensor"}
    assert layers["emoji_flux", "smoothquant"].value == pytest.approx(1.5)
    assert layers["emoji_sd3", "smoothquant"].value == pytest.approx(0.5)
    written = write_report([moved], tmp_path / "report", rows=1)
    headings = [line for line in written["comparisons.md"].read_text().splitlines() if line.startswith("## ")]
    assert len(headings) == len(set(headings)) == 4
    assert "## w8a8_tensor, emoji_flux" in headings
    page = written["report.html"].read_text()
    read = PageReader(page)
    rows, pairs = read.data("rows")["rows"], read.data("pairs")
    layer = pairs["metrics"].index("layer_error")
    told = [
        (rows[a]["group"], rows[b]["group"], rows[b]["label"]) for a, b, metric, *_ in pairs["pairs"] if metric == layer
    ]
    groups = [f"{precision}, {model}" for model in ("emoji_flux", "emoji_sd3") for precision in ("w8a8_tensor", "w4a8")]
    assert sorted(told) == sorted((group, group, name) for group in groups for name in ("rtn", "smoothquant"))
    assert [one["title"] for one in read.data("pictures")] == ["emoji_flux", "emoji_sd3"]
    assert "Of 8 paired comparisons of segquant_g with other methods in fid_ref" in page
    assert "emoji_sd3 segquant_g w4a8 segquant_g-w4a8" in written["table.md"].read_text()
    assert {"grid.png", "grid_emoji_sd3_emoji_0.png"} <= set(written)


def test_missing_evaluation_is_said(moved: Path, tmp_path: Path) -> None:
    shutil.rmtree(moved / "3" / "evaluation")
    written = write_report([moved], tmp_path / "report", grid=False)
    assert "Not compared: segquant_g vs rtn" in written["comparisons.md"].read_text()
    assert "Not compared: segquant_g vs rtn" in written["report.html"].read_text()


def test_two_runs_of_one_method_go_by_their_names(moved: Path) -> None:
    shutil.copytree(moved / "3", moved / "9")
    record = json.loads((moved / "9" / "results.json").read_text())
    record |= {"name": "segquant_g seglinear=false", "config_hash": "another"}
    (moved / "9" / "results.json").write_text(json.dumps(record))
    text = to_markdown(results_table(load_results([moved])))
    assert "| segquant_g seglinear=false |" in text and "| segquant_g-w8a8_tensor |" in text
    assert text.count("| segquant_g |") == 1  # the other precision has only one


def test_unquantized_model_is_shown_once(moved: Path) -> None:
    shutil.copytree(moved / "0", moved / "8")
    record = json.loads((moved / "8" / "results.json").read_text())
    (moved / "8" / "results.json").write_text(json.dumps(record | {"precision": "w4a8", "config_hash": "other"}))
    assert to_markdown(results_table(load_results([moved]))).count("unquantized") == 1


def test_repeated_configuration_is_shown_once(moved: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(moved / "3", moved / "again")
    assert len(load_results([moved])) == 7
    assert "repeats the configuration" in caplog.text


def test_layer_error_leaves_exact_layers_out(sweep: Path) -> None:
    run = next(r for r in load_results([sweep]) if r.quantizer == "rtn")
    with_exact = replace(run, layer_errors={**run.layer_errors, "skipped": 0.0})
    assert layer_error(with_exact) == layer_error(run)
    assert layer_error(run).value == pytest.approx(np.exp(np.mean(np.log(list(run.layer_errors.values())))))


def test_columns_only_where_there_is_something(sweep: Path) -> None:
    float_run = [r for r in load_results([sweep]) if r.is_float]
    assert [c.key for c in columns(float_run)] == [FID, "psnr", "ssim", "weight_mb", "compression"]


def test_grid_holds_the_pictures(moved: Path, tmp_path: Path) -> None:
    written = write_report([moved], tmp_path / "report", rows=4)
    with Image.open(written["grid.png"]) as opened:
        grid = np.asarray(opened.convert("RGB"))
    with Image.open(moved / "0" / "images" / "00000.png") as opened:
        first = np.kron(np.asarray(opened.convert("RGB")), np.ones((4, 4, 1), dtype=np.uint8))
    with Image.open(moved / "6" / "images" / "00007.png") as opened:
        last = np.kron(np.asarray(opened.convert("RGB")), np.ones((4, 4, 1), dtype=np.uint8))
    tops = [y for y in range(200) if np.array_equal(grid[y : y + 128, 190:318], first)]
    assert len(tops) == 1
    assert np.array_equal(grid[-136:-8, -136:-8], last)
    assert grid.shape[0] == tops[0] + 4 * 136


def test_wrapped_lines_fit() -> None:
    font: ImageFont.FreeTypeFont = _font(14)
    text = "flag: South Georgia & South Sandwich Islands, Donaudampfschifffahrtsgesellschaftskapitän"
    lines = wrap(text, font, 100)
    assert all(font.getlength(line) <= 100 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert wrap("", font, 100) == []


def test_page_is_self_contained_and_escaped(written: dict[str, Path]) -> None:
    page = written["report.html"].read_text()
    read = PageReader(page)  # refuses tags that are not closed
    sources = [attributes["src"] for _, attributes in read.tags if "src" in attributes]
    assert len(sources) == 4 * 2 and all(source.startswith("data:image/png;base64,") for source in sources)
    links = [attributes["href"] for _, attributes in read.tags if "href" in attributes]
    assert links and all(link.startswith(("#", "./../moved/")) for link in links)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    assert "Of 4 paired comparisons of segquant_g with other methods in fid_ref" in page


def test_links_of_the_page_lead_to_the_runs(written: dict[str, Path]) -> None:
    page = written["report.html"]
    links = [attributes["href"] for _, attributes in PageReader(page.read_text()).tags if "href" in attributes]
    files = [page.parent / unquote(link) for link in links if not link.startswith("#")]
    assert len([file for file in files if file.is_dir()]) == 7
    assert len([file for file in files if file.name == "results.json" and file.is_file()]) == 7
    assert all(file.exists() for file in files)


def test_grid_without_pictures(moved: Path, tmp_path: Path) -> None:
    shutil.rmtree(moved / "4" / "images")
    with pytest.raises(EvalError, match=r"images pictures of .*4/results\.json are not there.* --no-grid"):
        write_report([moved], tmp_path / "report")
    assert not (tmp_path / "report").exists()
    assert "grid.png" not in write_report([moved], tmp_path / "report", grid=False)


def test_two_seeds_get_two_grids(moved: Path, tmp_path: Path) -> None:
    for job in range(7):
        shutil.copytree(moved / str(job), moved / "seed1" / str(job))
        path = moved / "seed1" / str(job) / "results.json"
        record = json.loads(path.read_text())
        record |= {"seed": 1, "config_hash": record["config_hash"] + "1"}
        path.write_text(json.dumps(record))
    written = write_report([moved], tmp_path / "report", rows=1)
    assert {"grid.png", "grid_emoji_sd3_emoji_1.png"} <= set(written)
    assert "| seed | precision |" in written["table.md"].read_text()


def test_no_segquant_run(moved: Path, tmp_path: Path) -> None:
    for job in (3, 6):
        shutil.rmtree(moved / str(job))
    written = write_report([moved], tmp_path / "report", grid=False)
    assert "nothing to compare" in written["comparisons.md"].read_text()


def test_only_the_unquantized_model(moved: Path) -> None:
    assert "metrics.png" not in write_report([moved / "0"])
    assert (moved / "0" / "report.html").is_file()


def test_command_line(moved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(moved), "--rows", "1"]) == 0
    assert str(moved / "report.html") in capsys.readouterr().out


def test_command_line_in_a_new_process_needs_no_torch(moved: Path, tmp_path: Path) -> None:
    code = (
        "from segquant_bench.eval.cli import main; import sys; sys.exit(main(sys.argv[1:]) or 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(moved), "--rows", "1", "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def break_schema(path: Path) -> None:
    path.write_text(json.dumps({"schema": 2}))


def break_json(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def break_key(path: Path) -> None:
    record = json.loads(path.read_text())
    del record["prompts"]
    path.write_text(json.dumps(record))


def break_metric(path: Path) -> None:
    record = json.loads(path.read_text())
    del record["metrics"][0]["value"]
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("breaker", "sentence"),
    [(break_schema, "has schema 2, this version reads schema 1"), (break_json, "is not readable JSON"),
     (break_key, "lacks prompts"), (break_metric, "has no 'value'")],
)  # fmt: skip
def test_broken_results_are_one_sentence(moved: Path, capsys, breaker, sentence: str) -> None:
    breaker(moved / "2" / "results.json")
    assert main([str(moved), "--strict"]) == 2
    error = capsys.readouterr().err.strip()
    assert sentence in error and "\n" not in error
    assert not (moved / "table.md").exists()


def test_no_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error == (
        f"segquant-report: no results.json below {tmp_path}; give the run or sweep folder of a finished run\n"
    )
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere is no directory" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_rows_must_be_positive(moved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(moved), "--rows", "0"]) == 2
    assert "--rows must be at least 1" in capsys.readouterr().err


def test_eval_result_round_trip() -> None:
    result = EvalResult("psnr", float("inf"), 3, "higher", None, "x", "reference", None, None)
    assert EvalResult.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False))) == result
    other = EvalResult("fid", 1 / 3, 3, "lower", (0.1, 0.7), "x", "real", -0.5, (-1.0, 0.25))
    assert EvalResult.from_dict(json.loads(json.dumps(other.to_dict()))) == other
    with pytest.raises(EvalError, match="must be one of"):
        EvalResult("psnr", 1.0, 3, "up", None, "x", "reference")
    with pytest.raises(EvalError, match="NaN"):
        EvalResult("psnr", float("nan"), 3, "higher", None, "x", "reference").to_dict()


def test_paths_are_relative_to_the_results(moved: Path) -> None:
    run = load_result(moved / "1" / "results.json")
    assert run.folder("images") == moved / "1" / "images"
    assert run.folder("nothing") is None


def test_one_missing_series_does_not_hide_the_others(moved: Path) -> None:
    path = moved / "3" / "evaluation" / "per_image.json"
    stored = json.loads(path.read_text())
    del stored["metrics"]["psnr"]
    path.write_text(json.dumps(stored))
    found, refused = compare_runs(load_results([moved]))
    metrics = {c.metric for c in found if c.precision == "w8a8_tensor"}
    assert metrics == {FID, "ssim", "layer error", "output error"}
    assert len(refused) == 2 and "has no values of psnr" in refused[0]


def test_deltas_to_the_unquantized_model_are_told(moved: Path, tmp_path: Path) -> None:
    path = moved / "2" / "results.json"
    record = json.loads(path.read_text())
    clip = EvalResult("clip_score[x]", 30.0, 8, "higher", (29.0, 31.0), "x", "prompt", -1.25, (-2.0, -0.5))
    path.write_text(json.dumps(record | {"metrics": [*record["metrics"], clip.to_dict()]}))
    written = write_report([moved], tmp_path / "report", grid=False)
    line = ",w8a8_tensor,smoothquant,unquantized,clip_score[x],difference,-1.25,-2.0,-0.5,,8,pictures,worse"
    assert f"{line},0.005596,0.005596,,,1\n" in written["comparisons.csv"].read_text()
    (told,) = against_unquantized(load_results([moved]))
    assert told.value == -1.25
    sentence = "smoothquant vs unquantized at w8a8_tensor: clip_score[x] -1.25 [-2.00, -0.50] worse (n=8)"
    assert told.sentence() == sentence


def test_equal_values_are_not_called_best(moved: Path) -> None:
    for job in range(1, 7):
        path = moved / str(job) / "results.json"
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"output_error": 0.5, "per_row_output_errors": [], "per_row_prompts": []}))
    rows = to_markdown(results_table(load_results([moved]))).splitlines()
    assert rows[-1].count("**") == 2 * 4  # fid_ref, psnr, ssim and layer error, not the output error


def test_tables_say_where_the_numbers_come_from(moved: Path, tmp_path: Path) -> None:
    written = write_report([moved], tmp_path / "report", grid=False)
    runs = load_results([moved])
    for name in ("table.md", "report.html"):
        text = written[name].read_text()
        assert "versions: " in text and "device: " in text
        assert all(f"unquantized {run.config_hash}" in text for run in runs if run.is_float)
        told = [f"{run.quantizer} {run.precision} {run.config_hash}" for run in runs if not run.is_float]
        assert told and all(entry in text for entry in told)


def test_a_metric_that_is_not_registered_here_is_shown_and_compared(moved: Path, tmp_path: Path) -> None:
    """Results say its unit and direction, and what an evaluation left says how it can be compared."""
    values = np.random.default_rng(0).normal(size=(7, 8))
    for job in range(7):
        result = EvalResult(
            "glow[net]", float(values[job].mean()), 8, "higher", (-1.0, 1.0), "their_pkg 1.0", None, unit="cd"
        )
        path = moved / str(job) / "results.json"
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"metrics": [result.to_dict(), *record["metrics"]]}))
        path = moved / str(job) / "evaluation" / "per_image.json"
        kept = json.loads(path.read_text())
        kept["metrics"]["glow[net]"] = list(values[job])
        path.write_text(json.dumps(kept))
    found, refused = compare_runs(load_results([moved]))
    (glow,) = (c for c in found if c.metric == "glow[net]" and c.precision == "w4a8" and c.theirs == "rtn")
    assert refused == [] and glow.value == pytest.approx((values[6] - values[4]).mean())
    assert re.match(r"[+-]\d\.\d+ cd \[", glow.amount) and glow.kind == "difference"
    written = write_report([moved], tmp_path / "report", grid=False)
    assert "| glow [net] (cd) ↑ |" in written["table.md"].read_text()
    assert f"glow[net],difference,{glow.value!r}," in written["comparisons.csv"].read_text()
    assert "glow" not in written["comparisons.md"].read_text()


def test_a_metric_of_which_nothing_was_kept_is_not_compared(moved: Path) -> None:
    for job in range(7):
        path = moved / str(job) / "results.json"
        record = json.loads(path.read_text())
        alone = EvalResult("glow", 1.0, 8, "higher", None, "their_pkg 1.0", None).to_dict()
        path.write_text(json.dumps(record | {"metrics": [*record["metrics"], alone]}))
    found, refused = compare_runs(load_results([moved]))
    assert refused == [] and "glow" not in {c.metric for c in found}


def test_tables_alone(moved: Path) -> None:
    assert main([str(moved), "--output", str(moved / "whole"), "--no-grid", "--figures", "none"]) == 0
    assert main([str(moved), "--output", str(moved / "tables"), "--tables"]) == 0
    whole, tables = ({path.name for path in (moved / name).iterdir()} for name in ("whole", "tables"))
    assert whole - tables == {"report.html"} and {"table.csv", "comparisons.csv"} < tables
    for name in tables - {"runs.sqlite"}:
        assert (moved / "tables" / name).read_bytes() == (moved / "whole" / name).read_bytes()
