"""One line over a whole sweep: which job this is, how many are done and failed, and how long the rest will take."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from segquant_bench.durations import spoken
from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.jobs import DONE, FAILED, JOB, PRUNED, SWEEP, Job, load_job, load_sweep

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pace:
    """How far a sweep is; `left` is about how many seconds, None before a job is done.

    `pruned` jobs were given up by a search, `stopped` ones ended by a signal or with their process.
    """

    total: int
    done: int
    failed: int
    left: float | None
    running: int = 0
    pruned: int = 0
    stopped: int = 0

    @property
    def ended(self) -> int:
        return self.done + self.failed + self.pruned

    @property
    def waiting(self) -> int:
        return max(self.total - self.ended - self.running - self.stopped, 0)

    @property
    def missing(self) -> int:
        """Jobs without a result; of a sweep that is over, those that failed, however they did."""
        return max(self.total - self.done - self.pruned, 0)

    def counts(self) -> dict[str, int]:
        """For loggers."""
        names = ("waiting", "running", "done", "failed", "pruned", "stopped")
        return {"jobs": self.total, **{f"jobs/{name}": getattr(self, name) for name in names}}

    def __str__(self) -> str:
        more = (("pruned", self.pruned), ("failed", self.failed))
        parts = [f"{self.done} done", *(f"{count} {name}" for name, count in more if count)]
        if self.left is not None and self.ended < self.total:
            parts.append(f"about {spoken(self.left)} left")
        return ", ".join(parts)


def pace_of(folder: Path) -> Pace | None:
    """By the records of the sweep and of its jobs, whichever process wrote them; None where nothing is recorded."""
    try:
        sweep = load_sweep(folder / SWEEP)
    except (EvalError, OSError):
        return None
    jobs = [job for job in _jobs(folder, [each.folder for each in sweep.jobs]) if job.sweep == sweep.sweep]
    done, failed, pruned = ([job for job in jobs if job.outcome == outcome] for outcome in (DONE, FAILED, PRUNED))
    running = [job for job in jobs if job.outcome is None and job.is_alive]
    stopped = len(jobs) - len(done) - len(failed) - len(pruned) - len(running)
    found = Pace(sweep.total, len(done), len(failed), None, len(running), len(pruned), stopped)
    taken = [job.ended - job.began for job in done if job.ended is not None]
    return replace(found, left=_left(found, sum(taken) / len(taken), running)) if taken else found


def _left(found: Pace, mean: float, running: list[Job]) -> float:
    now = time.time()
    rest = sum(max(mean - (now - job.began), 0.0) for job in running)
    return (rest + mean * (found.waiting + found.stopped)) / max(len(running), 1)


def _jobs(folder: Path, names: list[str]) -> Iterator[Job]:
    for name in filter(None, names):
        try:
            yield load_job(folder / name / JOB)
        except (EvalError, OSError):  # it has not begun, or its record is being written
            continue


def tell_place(sweep: Path) -> str:
    """Log where this process's job stands; returns what begins its lines about progress."""
    config = HydraConfig.get()
    number = position(sweep, Path(config.runtime.output_dir)) or int(config.job.num) + 1
    pace = pace_of(sweep)
    if pace is None:
        return f"job {number}: "
    log.info("job %d of %d, %s", number, pace.total, pace)
    return f"job {number} of {pace.total}: "


def position(sweep: Path, own: Path) -> int | None:
    """Of the job in the folder `own` among the sweep's, from 1: a trial's number counts earlier commands too."""
    try:
        folders = [sweep / job.folder for job in load_sweep(sweep / SWEEP).jobs]
    except (EvalError, OSError):
        return None
    return folders.index(own) + 1 if own in folders else None


def tell_end(sweep: Path) -> Pace | None:
    """Log how the sweep ended."""
    pace = pace_of(sweep)
    if pace is not None:
        log.info("sweep of %d jobs: %s", pace.total, pace)
    return pace
