"""Files of runs that hold anything: one sentence that names the file and the key, or a report."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segquant_bench.eval import EvalError, load_result, load_results
from segquant_bench.eval.cli import main
from segquant_bench.eval.failures import load_failures
from segquant_bench.eval.files import save_tensors
from segquant_bench.eval.paper.curves import curves_csv, size_curves, step_curves
from segquant_bench.eval.paper.layers import cut_sheets, layer_sheets, layers_csv
from segquant_bench.eval.paper.polarity import polarity_sheets
from segquant_bench.eval.report.comparing.comparisons import against_unquantized, compare_runs
from segquant_bench.eval.report.comparing.evaluations import read_per_image, read_replicates
from segquant_bench.eval.report.comparing.summary import comparisons_markdown
from segquant_bench.eval.report.main_table.export import export_table
from segquant_bench.eval.report.main_table.results_table import results_table
from segquant_bench.eval.report.page.render import Page, render_page
from segquant_bench.eval.report.runs.groups import sort_runs
from segquant_bench.eval.results import EvalResult
from segquant_bench.eval.tables.render_csv import to_csv
from segquant_bench.eval.tables.render_markdown import to_markdown
from tests.eval.sweep import run_record

Keys = tuple[str | int, ...]
GONE = object()
WRONG = (
    GONE, None, [], {}, "x", "", -1, 0, 1, 2.5, True, math.inf, math.nan, 1e99, 1e308, 10**90, 10**400, 5e-324, [[]],
    [None], ["x"], [1], {"a": None}, {"x": {}}, {"_target_": []}, "\ud800\0",
)  # fmt: skip
LAYERS = [f"blocks.{index}.linear" for index in range(3)]


def whole_record(quantizer: str = "segquant_g") -> dict[str, Any]:
    """Everything that a report can read."""
    clip = EvalResult("clip_score[x]", 30.0, 8, "higher", (29.0, 31.0), "x", "prompt", -1.25, (-2.0, -0.5))
    raw = run_record(quantizer, "w8a8_tensor", 8.0, ["a cat", "a dog"], [clip.to_dict()])
    raw["layer_errors"] = {layer: 0.01 * number for number, layer in enumerate(LAYERS, 1)}
    raw |= {"per_row_output_errors": [0.01, 0.02, 0.03, 0.04], "per_row_steps": [0, 1, 2, 2]}
    raw |= {"per_row_prompts": [0, 0, 1, 1], "per_row_energies": [1.0, 2.0, 3.0, 4.0]}
    raw["layer_step_errors"] = {"steps": [0, 1, 2], "layers": {layer: [0.01, None, 0.02] for layer in LAYERS}}
    raw["statistics"] = {
        "segments": {LAYERS[0]: {"output": [4, 4], "input": None, "activation": "silu", "input_activations": [None]}},
        "polarity": {
            LAYERS[0]: [
                {
                    "activation": "silu",
                    "channels": 8,
                    "rows": 4,
                    "mostly_negative": 0.5,
                    "mostly_positive": 0.5,
                    "negative": 0.5,
                }
            ]
        },
    }
    part = {"weight_bytes": 10, "weight_bytes_float": 20, "output_error": 0.1, "layer_errors": {"text.linear": 0.1}}
    raw["components"] = {"transformer": {"weight_bytes": 10, "weight_bytes_float": 20}, "text_encoder": part}
    raw["quantizing"] = ["quantize"]
    raw["config"] = {
        "quantize": ["denoiser", "text_encoder"],
        "quantizer": {"_target_": f"segquant.presets.{quantizer}", "seglinear": True, "cuts": "graph"},
        "calibration": {"name": "uniform", "prompts": 4},
        "correction": {"method": "none"},
        "backend": "reference",
        "model": {"call": {"height": 32}, "dtype": "float32"},
        "run": {"name": "auto"},
    }
    raw["backend_layers"] = {"cpu": 3}
    return raw


def places(value: Any, keys: Keys = ()) -> Iterator[Keys]:
    """Of every value in a record, the first one of lists."""
    if keys:
        yield keys
    inner = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*keys, key))


def changed(raw: Any, keys: Keys, value: Any) -> Any:
    """A copy along the keys."""
    found: Any = copy.copy(raw)
    key, *rest = keys
    if rest:
        found[key] = changed(found[key], tuple(rest), value)
    elif value is GONE:
        del found[key]
    else:
        found[key] = value
    return found


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A folder with a good run of another method; broken ones go beside it."""
    write(tmp_path / "good" / "results.json", whole_record("rtn") | {"config_hash": "good"})
    return tmp_path


def render(folder: Path) -> None:
    """All that a report has but the pictures."""
    runs = load_results([folder])
    ordered = sort_runs(runs)
    found, refused = compare_runs(runs)
    tables = [results_table(runs), *layer_sheets(runs), *cut_sheets(runs), *polarity_sheets(runs)]
    texts = [to_csv(export_table(runs)), layers_csv(runs), comparisons_markdown(found, refused)]
    texts += [curves_csv(panels(ordered), "x") for panels in (step_curves, size_curves)]
    texts += [
        *map(to_markdown, tables),
        render_page(Page(ordered, found + against_unquantized(runs), folder, refused)),
    ]
    assert all(isinstance(text, str) for text in texts)


def test_the_whole_record_is_read(beside: Path) -> None:
    write(beside / "own" / "results.json", whole_record())
    render(beside)


def _told(path: Path, keys: Keys) -> str | None:
    """The sentence about a file, None if it can be read."""
    try:
        load_result(path)
    except EvalError as error:
        told = str(error)
        assert told.startswith(f"{path} ") and "\n" not in told and len(told) < len(str(path)) + 250, told
        assert any(str(key) in told for key in keys), (keys, told)
        assert told.endswith("; run that job again"), told
        return told
    return None


def _any_key(folder: Path, values: int = 1, reports: int = 1) -> tuple[int, int]:
    """How many files were refused, and how many read: of every so many values, and reports of those read."""
    raw, path = whole_record(), folder / "own" / "results.json"
    refused = read = 0
    for number, keys in enumerate(places(raw)):
        for value in WRONG[number % values :: values]:
            write(path, changed(raw, keys, value))
            if _told(path, keys) is not None:
                refused += 1
                continue
            read += 1
            if read % reports == 0:
                render(folder)
    return refused, read


def test_any_key_of_any_type(beside: Path) -> None:
    refused, read = _any_key(beside, values=3, reports=20)
    assert refused > 500 and read > 200


@pytest.mark.slow
def test_any_key_of_any_type_makes_a_report(beside: Path) -> None:
    assert sum(_any_key(beside)) > 2000


@pytest.mark.parametrize(
    ("keys", "value", "sentence"),
    [
        (("seed",), "x", 'holds seed = "x", which must be a whole number, at least 0'),
        (("seed",), GONE, "lacks seed;"),
        (("metrics", 0, "value"), math.nan, "holds metrics[0].value = NaN, which must be a number"),
        (("metrics", 0, "interval"), [1.0], "holds metrics[0].interval = a list, which must be a list of two numbers"),
        (("metrics", 0, "n"), GONE, "holds metrics[0], which has no 'n'"),
        (("metrics", 0, "against"), [], 'which must be one of "reference", "real", "prompt", null'),
        (("prompts",), [], "holds prompts = an empty list, which must be a list of at least one text"),
        (("prompts", 1), 3, "holds prompts[1] = 3, which must be a text"),
        (("layer_errors", LAYERS[1]), -1, "holds layer_errors.blocks.1.linear = -1, which must be a number, at least"),
        (("weight_bytes",), True, "holds weight_bytes = true, which must be a whole number"),
        (("n_images",), 2.5, "holds n_images = 2.5, which must be a whole number"),
        (("output_error",), 1e308, "holds output_error = 1e+308, which must be a number, at least 0 and at most 1e100"),
        (("artifacts", "images"), "a\0", "which must be a path within its folder"),
        (("artifacts", "images"), "../other/images", "which must be a path within its folder"),
        (("artifacts", "reference"), "/etc", "which must be a path within its folder"),
        (("per_row_steps",), [1], "holds 1 per_row_steps for 4 per_row_output_errors"),
        (("per_row_prompts",), [0, 0, 1, 1, 1], "holds 5 per_row_prompts for 4 per_row_output_errors"),
        (("per_row_energies",), [0.5], "holds 1 per_row_energies for 4 per_row_output_errors"),
        (("layer_step_errors", "layers", LAYERS[0]), [0.1], "holds 1 layer_step_errors of blocks.0.linear for 3 steps"),
        (("layer_step_errors", "steps"), GONE, "holds layer_step_errors, which has no 'steps'"),
        (("config", "quantizer", "cuts"), [], "holds config.quantizer.cuts = an empty list, which must be a text"),
        (("git",), ["x" * 999], "holds git = a list, which must be a text"),
        (("name",), None, "holds name = null, which must be a text"),
        (("config",), None, None),
        (("versions",), {"torch": [1, {}]}, "holds versions.torch = a list, which must be a text"),
        (("schema",), True, "has schema true, this version reads schema 1"),
        (("schema",), GONE, "has schema null, this version reads schema 1"),
    ],
)
def test_the_key_is_named(beside: Path, keys: Keys, value: Any, sentence: str | None) -> None:
    path = write(beside / "own" / "results.json", changed(whole_record(), keys, value))
    told = _told(path, (*keys, "readable"))
    assert told is None if sentence is None else told is not None and sentence in told, told


WHOLE = (
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe{}",
    b"[" * 5000,
    b"[" * 500 + b"]" * 500,
    b'{"schema": 1',
    b"1e400",
    b'"x"',
    b'{"schema": 1, "seed": ' + b"9" * 5000 + b"}",
)


@pytest.mark.parametrize("name", ["results.json", "failure.json"])
@pytest.mark.parametrize("content", WHOLE, ids=range(len(WHOLE)))
def test_any_content(beside: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes) -> None:
    path = write(beside / "own" / name, content)
    assert main([str(beside), "--no-grid", "--strict"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"segquant-report: {path} ") and told.count("\n") == 1 and len(told) < 300 + len(str(path))
    assert sorted(each.name for each in beside.iterdir()) == ["good", "own"]


def test_files_that_break_off_anywhere(beside: Path) -> None:
    whole = json.dumps(whole_record()).encode()
    for length in range(0, len(whole), 29):
        path = write(beside / "own" / "results.json", whole[:length])
        assert "is not readable JSON" in str(_told(path, ("readable",)))


FAILURE = {"schema": 1, "name": "a", "model": "m", "dataset": "d", "precision": "p", "seed": 0, "overrides": ["a=b"],
           "message": "why"}  # fmt: skip


def test_any_failure_is_told_or_refused_by_its_key(tmp_path: Path) -> None:
    path = tmp_path / "failure.json"
    for keys in places(FAILURE):
        for value in WRONG:
            write(path, changed(FAILURE, keys, value))
            try:
                (failure,) = load_failures([tmp_path])
            except EvalError as error:
                assert str(error).startswith(f"{path} ") and str(keys[0]) in str(error)
                assert keys[0] in ("message", "overrides") or isinstance(value, dict | list)
            else:
                assert all(isinstance(text, str) for text in (failure.name, failure.seed, *failure.overrides))


def test_the_report_of_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    beside, good = tmp_path, run_record("none", "w8a8_tensor", 0.0, ["a"], [])  # of which nothing is drawn
    write(beside / "good" / "results.json", good)
    broken = write(beside / "own" / "results.json", whole_record() | {"seed": "x"})
    failed = write(beside / "failed" / "failure.json", b"{")
    assert main([str(beside), "--no-grid", "--strict"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1 and not (beside / "table.md").exists()
    assert main([str(beside), "--no-grid"]) == 1
    told = capsys.readouterr()
    assert str(beside / "table.md") in told.out
    assert [line.partition(" ")[0] for line in told.err.splitlines()] == ["segquant-report:"] * 2
    assert f"skipped: {broken} holds seed" in told.err and f"skipped: {failed} is not readable" in told.err
    for name in ("table.md", "report.html", "table.csv"):
        text = (beside / name).read_text()
        assert "float32" in text and "which must be a whole number" in text and "is not readable JSON" in text
    (beside / "good" / "results.json").unlink()
    assert main([str(beside), "--no-grid"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "(2 runs failed, the first with: " in last
    broken.unlink()
    failed.unlink()
    write(beside / "good" / "results.json", good)
    assert main([str(beside), "--no-grid"]) == 0


@pytest.fixture
def evaluated(tmp_path: Path) -> Callable[[str, Any], Any]:
    """A run whose evaluation holds such a file."""
    run = load_result(write(tmp_path / "results.json", whole_record()))

    def make(name: str, content: Any) -> Any:
        write(tmp_path / "evaluation" / name, content)
        return run

    return make


@pytest.mark.parametrize(
    "content",
    [*WHOLE, [], {}, {"metrics": []}, *({"metrics": {"psnr": x}} for x in (None, 1, {}, [None], ["x"], [math.nan]))],
    ids=str,
)  # fmt: skip
def test_values_per_picture_of_any_type(evaluated: Callable[[str, Any], Any], content: Any) -> None:
    with pytest.raises(EvalError, match=r"per_image\.json .*evaluate that run again"):
        read_per_image(evaluated("per_image.json", content), "psnr")


@pytest.mark.parametrize("content", [b"", b"x", b"\0" * 8, b"\xff" * 100])
def test_replicates_of_any_content(evaluated: Callable[[str, Any], Any], content: bytes) -> None:
    with pytest.raises(EvalError, match=r"features\.safetensors has no resamples .*evaluate that run again"):
        read_replicates(evaluated("features.safetensors", content), "fid")


@pytest.mark.parametrize(
    "drawn", [np.zeros((2, 2)), np.zeros(0), np.zeros(1), np.zeros(3, dtype=np.int64), np.array([1.0, np.nan])]
)
def test_replicates_of_any_shape(evaluated: Callable[[str, Any], Any], drawn: np.ndarray) -> None:
    run = evaluated("features.safetensors", b"")
    save_tensors(run.path.parent / "evaluation" / "features.safetensors", {"replicates/fid": drawn})
    with pytest.raises(EvalError, match=r"features\.safetensors has no finite numbers as the resamples of fid"):
        read_replicates(run, "fid")


def test_files_are_looked_at_twice_only_beside_a_broken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "good" / "results.json", run_record("none", "w8a8_tensor", 0.0, ["a"], []))
    looked: list[object] = []
    monkeypatch.setattr("segquant_bench.eval.results.find_unreadable", lambda folders: looked.append(folders) or [])
    assert main([str(tmp_path), "--tables"]) == 0 and not looked
    write(tmp_path / "own" / "results.json", b"{")
    assert main([str(tmp_path), "--tables"]) == 2 and len(looked) == 1
