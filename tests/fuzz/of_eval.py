"""Readers of other people's results: what segquant-report and segquant-status read."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np

from segquant_bench.eval import EvalError
from segquant_bench.eval.cli import main
from segquant_bench.eval.files import save_tensors
from segquant_bench.eval.jobs import JOB, SWEEP, this_process
from segquant_bench.eval.report.comparing.evaluations import read_per_image, read_replicates
from segquant_bench.eval.results import find_unreadable, load_result, load_results
from segquant_bench.eval.status import read_status
from segquant_bench.eval.store import STORE, Store
from segquant_bench.eval.study import front_table, load_searches, trials_table
from tests.eval.test_broken_files import FAILURE, render, whole_record
from tests.fuzz.target import Target

RESULTS = "results.json"


def _save_results(folder: Path) -> None:
    (folder / "good").mkdir()
    (folder / "own").mkdir()
    (folder / "good" / RESULTS).write_text(json.dumps(whole_record("rtn") | {"config_hash": "good"}))
    (folder / "own" / RESULTS).write_text(json.dumps(whole_record()))


def _render(folder: Path) -> None:
    load_result(folder / "own" / RESULTS)
    render(folder)


def _save_pictures(folder: Path) -> None:
    from PIL import Image

    raw = whole_record()
    raw["artifacts"] = {"images": "images", "reference": "reference", "evaluation": "evaluation", "plan": "plan.json"}
    (folder / RESULTS).write_text(json.dumps(raw))
    for kind in ("images", "reference"):
        (folder / kind).mkdir()
        for index in range(len(raw["prompts"])):
            Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / kind / f"{index:05d}.png")
    (folder / "plan.json").write_text("{}")


def _report(folder: Path) -> None:
    """The whole command: exit code 0, or 1 or 2 with sentences."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        code = main([str(folder), "--figures", "none"])
    lines = told.getvalue().splitlines()
    if code == 2 and not (lines and lines[-1].startswith("segquant-report: ")):
        raise AssertionError(f"exit code {code} and {lines}")


def _save_failure(folder: Path) -> None:
    (folder / "failure.json").write_text(json.dumps(FAILURE | {"tries": 2, "mendable": "disk"}))


def _read_failure(folder: Path) -> None:
    from segquant_bench.eval.failures import load_failures

    load_failures([folder])


def _save_evaluation(folder: Path) -> None:
    _save_results(folder)
    evaluation = folder / "own" / "evaluation"
    evaluation.mkdir()
    (evaluation / "per_image.json").write_text(json.dumps({"metrics": {"psnr": [1.0, 2.0, "inf"]}}))
    save_tensors(evaluation / "features.safetensors", {"left_out/fid": np.arange(4.0)}, {"n": "4", "seed": "0"})


def _read_evaluation(folder: Path) -> None:
    run = load_result(folder / "own" / RESULTS)
    read_per_image(run, "psnr")
    read_replicates(run, "fid")


def _save_sweep(folder: Path) -> None:
    process = {**this_process(), "sweep": "a", "began": time.time() - 60.0}
    jobs = [{"folder": name, "overrides": [f"quantizer={name}"]} for name in ("rtn", "gptq")]
    (folder / SWEEP).write_text(json.dumps({**process, "jobs": jobs, "total": 3, "ended": None}))
    for name in ("rtn", "gptq"):
        (folder / name).mkdir()
        job = {**process, "tries": 1, "ended": time.time(), "outcome": "done", "value": 0.1}
        (folder / name / JOB).write_text(json.dumps(job))
    (folder / "rtn" / RESULTS).write_text(json.dumps(whole_record("rtn")))
    (folder / "gptq" / "job.log").write_text("a line\n")


def _status(folder: Path) -> None:
    from segquant_bench.eval.status_cli import main as status

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as told:
        code = status([str(folder)])
    if code not in (0, 1, 2) or "Traceback" in told.getvalue():
        raise AssertionError(f"exit code {code}: {told.getvalue()}")
    found = read_status(folder)
    _ = (found.counts, found.seconds_left, found.needs_a_look)


def _save_study(folder: Path) -> None:
    trials = [
        {"number": n, "folder": str(n), "params": {"quantizer.alpha": 0.1 * n}, "state": "complete",
         "values": [0.1 * n, 5 - n], "layer_error": 0.1}
        for n in range(3)
    ]  # fmt: skip
    objectives = {"output_error": "minimize", "psnr": "maximize"}
    (folder / "study.json").write_text(json.dumps({"schema": 1, "objectives": objectives, "trials": trials}))


def _read_study(folder: Path) -> None:
    for search in load_searches([folder]):
        front_table(search)
        trials_table(search)


def _save_store(folder: Path) -> None:
    _save_results(folder)
    paths = sorted(folder.rglob(RESULTS))
    for path in paths:
        os.utime(path, (1.0, 1.0))
    Store(folder / STORE).load(paths)


def _read_store(folder: Path) -> None:
    paths = sorted(folder.rglob(RESULTS))
    load_results([folder], (), lambda given: Store(folder / STORE).load(given))
    Store(folder / STORE).query("SELECT name, value FROM metrics")
    assert len(paths) == 2
    shutil.rmtree(folder / "nothing", ignore_errors=True)


def _unreadable(folder: Path) -> None:
    find_unreadable([folder])
    read_status(folder)


TARGETS = (
    Target("results.json", _save_results, _render, (EvalError,), ("own/results.json",)),
    Target("results.json by segquant-report", _save_pictures, _report, (), ("*.json", "*.png")),
    Target("results.json beside another", _save_results, _unreadable, (), ("own/results.json",)),
    Target("failure.json", _save_failure, _read_failure, (EvalError,)),
    Target("comparisons of pictures", _save_evaluation, _read_evaluation, (EvalError,), ("*/evaluation/*",)),
    Target("segquant-status", _save_sweep, _status, (EvalError,)),
    Target("study.json", _save_study, _read_study, (EvalError,)),
    Target("runs.sqlite", _save_store, _read_store, (EvalError,), (STORE,)),
)
