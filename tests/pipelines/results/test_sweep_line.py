"""The line over a whole sweep, from what its jobs wrote, whichever process ran them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from segquant_bench.eval.jobs import DONE, FAILED, JOB, this_process
from segquant_bench.pipelines.results.sweep_line import Pace, pace_of, position


def _sweep(folder: Path, jobs: int, **changed: Any) -> None:
    listed = [{"folder": f"{number}_rtn", "overrides": []} for number in range(jobs)]
    record = {**this_process(), "sweep": "mine", "began": 0.0, "jobs": listed, "total": jobs, **changed}
    (folder / ".sweep.json").write_text(json.dumps(record))


def _job(folder: Path, number: int, outcome: str | None, seconds: float, sweep: str = "mine") -> None:
    place, now = folder / f"{number}_rtn", time.time()
    place.mkdir(exist_ok=True)
    record = {**this_process(), "sweep": sweep, "began": now - seconds, "tries": 1, "outcome": outcome}
    (place / JOB).write_text(json.dumps({**record, **({"ended": now} if outcome else {})}))


def test_what_is_done_failed_and_left(tmp_path: Path) -> None:
    assert pace_of(tmp_path) is None
    _sweep(tmp_path, 12)
    _job(tmp_path, 0, None, 5.0)
    assert str(pace_of(tmp_path)) == "0 done"
    _job(tmp_path, 0, DONE, 50.0)
    _job(tmp_path, 1, DONE, 70.0)
    _job(tmp_path, 2, FAILED, 1.0)
    _job(tmp_path, 3, None, 0.0)
    _job(tmp_path, 4, DONE, 1.0, sweep="an earlier one")
    pace = pace_of(tmp_path)
    assert pace is not None and (pace.total, pace.done, pace.failed) == (12, 2, 1)
    assert pace.left == pytest.approx(9 * 60, abs=1), "that job, and eight that wait, at a minute each"
    assert str(pace) == "2 done, 1 failed, about 9 min left"
    _job(tmp_path, 5, None, 30.0)
    _job(tmp_path, 6, None, 600.0)
    pace = pace_of(tmp_path)
    assert pace is not None and pace.left == pytest.approx((60 + 30 + 0 + 6 * 60) / 3, abs=1), "three at once"


def test_the_end_and_jobs_that_come_later(tmp_path: Path) -> None:
    assert str(Pace(3, 2, 1, 0.0)) == "2 done, 1 failed" and str(Pace(2, 2, 0, 0.0)) == "2 done"
    _sweep(tmp_path, 2, total=5)
    _job(tmp_path, 0, DONE, 10.0)
    _job(tmp_path, 1, DONE, 10.0)
    pace = pace_of(tmp_path)
    assert pace is not None and pace.total == 5 and pace.left == pytest.approx(30, abs=1)


def test_a_job_stands_where_its_sweep_lists_it(tmp_path: Path) -> None:
    assert position(tmp_path, tmp_path / "5_rtn") is None
    _sweep(tmp_path, 6)
    path = tmp_path / ".sweep.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"jobs": record["jobs"][4:], "total": 2}))
    assert position(tmp_path, tmp_path / "5_rtn") == 2  # trial 5 of a search that went on
    assert position(tmp_path, tmp_path / "3_rtn") is None


def test_records_that_are_damaged(tmp_path: Path) -> None:
    _sweep(tmp_path, 2)
    _job(tmp_path, 0, DONE, 10.0)
    (tmp_path / "1_rtn").mkdir()
    (tmp_path / "1_rtn" / JOB).write_text("{")
    assert str(pace_of(tmp_path)) == "1 done, about 10 s left"
    (tmp_path / ".sweep.json").write_text("[")
    assert pace_of(tmp_path) is None
