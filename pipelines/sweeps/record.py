"""Writes what `segquant-status` reads: see `eval.jobs`. A folder that takes no record is told of in the log."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.files import save_json
from segquant_bench.eval.jobs import BEAT, DONE, ENDED, FAILED, JOB, SWEEP, Listed, load_job, this_process
from segquant_bench.pipelines.errors import one_line
from segquant_bench.pipelines.runtime.interrupt import heard

log = logging.getLogger(__name__)

MARK = ".sweep-"
"""Begins the name of a hidden file that says which sweep filled a folder."""


class Beat:
    """Sets a file's time anew, from a thread of its own, until `stop`."""

    def __init__(self, path: Path) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, args=(path,), name="segquant-beat", daemon=True)
        self._thread.start()

    def _beat(self, path: Path) -> None:
        while not self._over.wait(BEAT):
            try:
                os.utime(path)
            except OSError:  # the folder is gone or away: no sign is what that means
                continue

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


class SweepRecord:
    """The jobs of one sweep, in its folder.

    Attributes:
        sweep: marks what belongs to it.
        total: how many jobs there will be, where more come than are listed so far.
        begun: called with the first jobs, once they are recorded and before they run.
    """

    current: ClassVar[SweepRecord | None] = None
    """That of the sweep which this process launches."""

    def __init__(self, folder: Path, sweep: str) -> None:
        self.folder, self.path, self.sweep, self.total = folder, folder / SWEEP, sweep, 0
        self.jobs: list[Listed] = []
        self._record: dict[str, Any] = {**this_process(), "sweep": sweep, "began": time.time(), "ended": None}
        self._beat: Beat | None = None
        self.begun: Callable[[Sequence[Listed]], None] | None = None

    def add(self, jobs: Sequence[Listed]) -> None:
        self.jobs += jobs
        self._write()
        if self._beat is None:
            self._beat = Beat(self.path)
            if self.begun is not None:
                self.begun(jobs)

    def end(self) -> None:
        """Nothing where it never began."""
        if self._beat is not None:
            self._beat.stop()
            self._record["ended"] = time.time()
            self._write()

    def _write(self) -> None:
        listed = [{"folder": job.folder, "overrides": list(job.overrides)} for job in self.jobs]
        _save(self.path, {**self._record, "jobs": listed, "total": max(self.total, len(listed))})


@contextmanager
def job_record(folder: Path, sweep: str) -> Iterator[dict[str, Any]]:
    """Within it a job is running; how it ended is written whatever ends it, but for a kill.

    What the block puts into the mapping is written too: its `value`, or another `outcome`.
    """
    path, began = folder / JOB, time.time()
    record = {**this_process(), "sweep": sweep, "began": began, "tries": tries_before(folder, sweep) + 1}
    _save(path, {**record, "ended": None, "outcome": None})
    beat, outcome = Beat(path), ENDED
    more: dict[str, Any] = {}
    try:
        yield more
        outcome = DONE
    except KeyboardInterrupt:
        heard()  # or the next one would cut the writing short
        raise
    except Exception:
        outcome = FAILED
        raise
    finally:
        beat.stop()
        ended = time.time()
        _save(path, {**record, "ended": ended, "outcome": outcome, **(_in_json(more) if outcome == DONE else {})})


def _in_json(value: Any) -> Any:
    """Infinite numbers as texts."""
    if isinstance(value, dict):
        return {key: _in_json(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_in_json(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def from_json(value: Any) -> Any:
    """The `value` of a job's record as the job returned it."""
    if isinstance(value, dict):
        return {key: from_json(each) for key, each in value.items()}
    if isinstance(value, list):
        return [from_json(each) for each in value]
    return float(value) if value in ("inf", "-inf", "nan") else value


def tries_before(folder: Path, sweep: str) -> int:
    """How often a job of this sweep was begun in its folder."""
    try:
        before = load_job(folder / JOB)
    except (EvalError, OSError):
        return 0
    return before.tries if sweep and before.sweep == sweep else 0


def _save(path: Path, record: dict[str, Any]) -> None:
    try:
        save_json(path, record)
    except OSError as error:
        log.warning("segquant-status will not know of this: %s", one_line(error))
