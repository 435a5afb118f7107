"""A sweep has a line over all its jobs, and a run of its own in the logger."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from omegaconf import OmegaConf

from segquant_bench.pipelines.config.sections import LoggerConfig
from segquant_bench.pipelines.results.sweep_line import Pace
from segquant_bench.pipelines.results.sweep_log import Asked, log_sweep
from tests.pipelines.conftest import Command, Tiny
from tests.pipelines.loggers.offline import offline_files, read_offline


def test_jobs_and_the_whole_are_told(command: Command, tiny: Tiny, cache: Path) -> None:
    outcome = command("-m", *tiny.overrides(cache), "quantizer=none,smoothquant", "precision=w4a16", "retries=0")
    assert outcome.code == 1
    logs = [path.read_text() for path in sorted(outcome.folder.glob("*/segquant.log"))]
    assert "] job 1 of 2, 0 done\n" in logs[0] and "job 1 of 2: the cache has no stage like evaluate" in logs[0]
    assert "] job 2 of 2, 1 done, about " in logs[1]


def _asked(folder: Path, *overrides: str, **logger: object) -> Asked:
    return Asked(OmegaConf.structured(LoggerConfig("wandb", mode="offline", **logger)), overrides, folder / "cache")


def test_a_sweep_s_own_run(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    rows = [["method", "psnr", "size"], ["rtn", "39.5", ""], ["gptq, mse", "inf", ""]]
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    (folder / "report.html").write_text("<h1>Report</h1>")
    asked = _asked(tmp_path, "quantizer=rtn,gptq")
    log_sweep(folder, asked, Pace(3, 2, 1, None))
    found = read_offline(folder)
    assert (found.run.display_name, found.run.run_group, found.run.job_type) == ("sweep", "sweep", "sweep")
    assert found.exit_code == 1 and found.summary["why"] == "1 of 3 jobs failed"
    assert (found.summary["jobs"], found.summary["jobs/done"], found.summary["jobs/failed"]) == (3, 2, 1)
    files = offline_files(folder)[0].parent / "files"
    table = json.loads((files / found.history["table/path"]).read_text())
    assert table["columns"] == rows[0] and table["data"][0] == ["rtn", 39.5, None]
    assert "<h1>Report</h1>" in (files / found.history["report/path"]).read_text()
    assert found.config["overrides"] == ["quantizer=rtn,gptq"]


def test_the_same_sweep_is_logged_once_and_no_fault_ends_it(tmp_path: Path, caplog) -> None:
    from segquant_bench.pipelines.results.sweep_log import about_sweep

    (tmp_path / "table.csv").write_text("method\nrtn\n")
    first = about_sweep(tmp_path, _asked(tmp_path, "a=1"))
    assert about_sweep(tmp_path, _asked(tmp_path, "a=1")) == first
    assert about_sweep(tmp_path, _asked(tmp_path, "a=2")).id != first.id
    (tmp_path / "table.csv").write_text("method\ngptq\n")
    again = about_sweep(tmp_path, _asked(tmp_path, "a=1"))
    assert again.id == first.id and again.content != first.content
    log_sweep(tmp_path, _asked(tmp_path, project="a/b"), None)
    assert caplog.text.count("the sweep has no run of its own in the logger: logger.project='a/b' is no name") == 1
