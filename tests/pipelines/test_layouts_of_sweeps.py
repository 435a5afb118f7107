"""Wherever Hydra puts runs, the report finds them; a failed one stands in it with its sentence."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest

from segquant_bench.eval import EvalError, load_results
from segquant_bench.eval.cli import main as report
from segquant_bench.eval.files import find_named
from segquant_bench.eval.render import write_report
from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.errors import PipelineError
from tests.eval.support import smooth_pictures, write_pictures
from tests.eval.sweep import run_record
from tests.pipelines.conftest import Command, Tiny, compose_config


def test_nested_folders_other_working_folders_and_failures(command: Command, tiny: Tiny, cache: Path) -> None:
    base = [argument.replace(str(cache.parent) + "/", "") for argument in tiny.overrides(cache)]
    assert "cache=cache" in base, "relative paths mean the folder of the command, not the run's"
    places = ["hydra.sweep.subdir='a b/${hydra.job.num}.x/${name}'", "hydra.job.chdir=true", "name='${method:}/n'"]
    outcome = command("-m", *base, "quantizer=none,smoothquant", "precision=w4a16", *places)
    assert outcome.code == 1 and "smoothquant at w4a16" in outcome.sentence
    assert [
        path.parent.relative_to(outcome.folder).as_posix() for path in find_named(outcome.folder, "results.json")
    ] == ["a b/0.x/none/n"]
    record = json.loads((outcome.folder / "a b/1.x/smoothquant/n/failure.json").read_text())
    assert record["message"] in outcome.sentence and "quantizer=smoothquant" in record["overrides"]
    assert (record["model"], record["precision"]) == ("tiny_random", "w4a16")
    assert list((cache / "stage").glob("reference-*")) and not list(outcome.folder.rglob("cache"))
    table = (outcome.folder / "table.md").read_text()
    page = (outcome.folder / "report.html").read_text()
    for text in (table, page, (outcome.folder / "table.tex").read_text()):
        assert "Failed runs" in text and "smoothquant at w4a16" in text and "unquantized" in text
    rows = list(csv.DictReader(io.StringIO((outcome.folder / "table.csv").read_text())))
    assert [row["failure"] == record["message"] for row in rows] == [False, True] and rows[1]["precision"] == "w4a16"


def test_two_jobs_in_one_folder(command: Command, tiny: Tiny, cache: Path) -> None:
    """The first stays as it is, and stands in the report."""
    arguments = ["-m", *tiny.overrides(cache), "quantizer=none,rtn", "hydra.sweep.subdir=a/b"]
    outcome = command(*arguments)
    assert outcome.code == 1 and "a/b is another job's folder already; put ${hydra.job.num} into" in outcome.sentence
    assert [run.quantizer for run in load_results([outcome.folder])] == ["none"]
    assert "unquantized" in (outcome.folder / "table.md").read_text()
    assert command(*arguments[:-2], "quantizer=rtn", arguments[-1]).code == 0


def test_folders_that_cannot_be_made(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for more in (f"hydra.sweep.subdir={'n' * 300}", "hydra.sweep.subdir=../file/x"):
        outcome = command("-m", *tiny.overrides(tmp_path / "cache"), more)
        assert outcome.code == 1 and "Traceback" not in outcome.err
        assert (
            " cannot be written (" in outcome.sentence and "choose another place with hydra.run.dir" in outcome.sentence
        )


def test_a_name_that_leads_out_of_the_sweep(tiny: Tiny, tmp_path: Path) -> None:
    for name in ("../x", "a/../../x", ".."):
        with pytest.raises(PipelineError, match=r"leads out of the sweep's folder; leave \.\. out"):
            validate(compose_config([*tiny.overrides(tmp_path), f"name={name}"]))
    assert validate(compose_config([*tiny.overrides(tmp_path), "name='a b/c..d'"])).name == "a b/c..d"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two finished runs, `sweep/a/rtn` and `sweep/mse`."""
    write_pictures(tmp_path / "pictures", smooth_pictures(2, 16, seed=0))
    for place, name in (("a/rtn", "rtn"), ("mse", "mse")):
        raw = run_record(name, "w8a8_tensor", 8.0, ["one", "two"], [])
        raw["artifacts"] = {"images": "pictures", "reference": "pictures"}
        (tmp_path / "sweep" / place).mkdir(parents=True)
        (tmp_path / "sweep" / place / "pictures").symlink_to(tmp_path / "pictures")
        (tmp_path / "sweep" / place / "results.json").write_text(json.dumps(raw))
    return tmp_path / "sweep"


def test_whatever_folder_or_file_is_given(runs: Path, tmp_path: Path) -> None:
    for given, found in ((runs, 2), (tmp_path, 2), (runs / "a", 1), (runs / "mse", 1), (runs / "mse/results.json", 1)):
        assert len(load_results([given])) == found
    one = write_report([runs / "mse" / "results.json"], grid=False)
    assert one["table.md"] == runs / "mse" / "table.md"
    with pytest.raises(EvalError, match=r"table\.md is no directory"):
        load_results([runs / "mse" / "table.md"])


def test_links_are_followed_and_never_in_a_circle(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "collected").mkdir()
    (tmp_path / "collected" / "first").symlink_to(runs / "a", target_is_directory=True)
    (tmp_path / "collected" / "second").symlink_to(runs / "mse", target_is_directory=True)
    (runs / "a" / "back").symlink_to(tmp_path / "collected", target_is_directory=True)
    assert {run.quantizer for run in load_results([tmp_path / "collected"])} == {"rtn", "mse"}
    assert {run.quantizer for run in load_results([tmp_path / "collected", runs])} == {"rtn", "mse"}


def test_a_run_that_failed_later_is_not_shown_as_finished(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"message": "the disk\n<b>is</b> full", "name": "rtn", "overrides": ["a=b|c"]}
    (runs / "a" / "rtn" / "failure.json").write_text(json.dumps(record))
    assert [run.quantizer for run in load_results([runs])] == ["mse"]
    written = write_report([runs], grid=False)
    table = written["table.md"].read_text()
    assert r"the disk \<b>is\</b> full" in table and r"a=b\|c" in table
    assert "the disk &lt;b&gt;is&lt;/b&gt; full" in written["report.html"].read_text()
    shutil.rmtree(runs / "mse")
    assert report([str(runs)]) == 2
    assert "(1 run failed, the first with: the disk <b>is</b> full); give the run" in capsys.readouterr().err
    (runs / "a" / "rtn" / "failure.json").write_text("{")
    with pytest.raises(EvalError, match=r"failure\.json is not readable JSON"):
        write_report([runs])
