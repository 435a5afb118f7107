"""Launches a sweep's jobs, and those again whose failure another try may mend."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.failures import FILE, load_failure
from segquant_bench.eval.files import save_json
from segquant_bench.eval.jobs import DONE, FAILED, JOB, PRUNED, Job, Listed, load_job
from segquant_bench.pipelines.errors import PipelineError, one_line
from segquant_bench.pipelines.sweeps.record import MARK, SweepRecord, from_json, tries_before

log = logging.getLogger(__name__)


class LostJob(PipelineError):
    """The process of a job ended without a word."""

    mendable = "process"

    def __init__(self, message: str = "its process was lost: killed, out of memory, or with its machine") -> None:
        super().__init__(message)


def lost(error: PipelineError) -> JobReturn:
    """What a launcher returns for a job that could not say how it ended."""
    found = JobReturn(status=JobStatus.FAILED)
    found.return_value = error
    return found


@dataclass
class Launch:
    """Launches jobs of one sweep.

    Attributes:
        record: that of the sweep.
        retries: how often a job is tried again.
        batch: how many jobs the launcher gets at once; None is all.
        keeps_folders: jobs have the folders that are listed, whatever numbers the launcher gives them.
    """

    launcher: Launcher
    record: SweepRecord
    retries: int
    batch: int | None = None
    keeps_folders: bool = False
    _jobs: list[Listed] = field(default_factory=list)
    _found: dict[int, JobReturn] = field(default_factory=dict)
    _broke: bool = False

    def run(self, jobs: Sequence[Listed], first: int = 0) -> list[JobReturn]:
        """One return a job, in their order; `first` is the number of the first."""
        self._jobs, self._found = list(jobs), {}
        size = self.batch or max(len(jobs), 1)
        for start in range(0, len(jobs), size):
            self._launch(list(range(start, min(start + size, len(jobs)))), first)
        for number in range(1, self.retries + 1):
            self._again(number, first)
        for index, result in self._found.items():
            if isinstance(failure_of(result), LostJob):
                self._tell_lost(index)
        return [self._found[index] for index in range(len(jobs))]

    def _again(self, number: int, first: int) -> None:
        failed = {index: failure_of(result) for index, result in self._found.items()}
        again = [index for index, error in failed.items() if self._is_mendable(index, error)]
        if not again:
            return
        log.info("%d of %d jobs are tried again (%d of %d)", len(again), len(failed), number, self.retries)
        for index in again:
            log.info("\t%s failed: %s", one_line(self._jobs[index].folder), one_line(failed[index] or ""))
            for mark in self._place(index).glob(f"{MARK}*"):  # it was this sweep's already
                mark.unlink(missing_ok=True)
        # one that ends its process takes those beside it along
        for indices in [[index] for index in again] if self._broke else [again]:
            self._launch(indices, first)

    def _is_mendable(self, index: int, error: BaseException | None) -> bool:
        return bool(getattr(error, "mendable", "")) and bool(self._jobs[index].folder)

    def _launch(self, indices: list[int], first: int) -> None:
        while indices:
            try:
                results = self.launcher.launch(self._overrides(indices), initial_job_idx=first + indices[0])
            except BrokenProcessPool as error:
                self._broke = True
                log.warning("a process of the launcher was lost, and its other jobs with it: %s", one_line(error))
                begun = {index: result for index in indices if (result := self._left(index)) is not None}
                if not begun:  # the launcher itself does not run
                    begun = {index: lost(LostJob()) for index in indices}
                self._found.update(begun)
                indices = [index for index in indices if index not in begun]
            else:
                self._found.update(zip(indices, results, strict=True))
                return

    def _overrides(self, indices: Sequence[int]) -> list[list[str]]:
        """Jobs that keep their folders, although a launcher numbers what it gets one after the other."""
        jobs = [self._jobs[index] for index in indices]
        in_order = not self.keeps_folders and list(indices) == list(range(indices[0], indices[0] + len(indices)))
        return [[*job.overrides, *([] if in_order or not job.folder else [_subdir(job.folder)])] for job in jobs]

    def _place(self, index: int) -> Path:
        return self.record.folder / self._jobs[index].folder

    def _job(self, index: int) -> Job | None:
        try:
            job = load_job(self._place(index) / JOB)
        except (EvalError, OSError):
            return None
        return job if job.sweep == self.record.sweep and self._jobs[index].folder else None

    def _left(self, index: int) -> JobReturn | None:
        """What a job left in its folder; None if it never began."""
        job = self._job(index)
        if job is None:
            return None
        if job.outcome in (DONE, PRUNED):
            done = JobReturn(status=JobStatus.COMPLETED)
            done.return_value = from_json(job.value)
            return done
        return lost(self._told(index) if job.outcome == FAILED else LostJob())

    def _told(self, index: int) -> PipelineError:
        try:
            failure = load_failure(self._place(index) / FILE)
        except EvalError as error:
            return PipelineError(str(error))
        told = PipelineError(failure.message)
        told.mendable = failure.mendable
        return told

    def _tell_lost(self, index: int) -> None:
        """For the report: nobody else wrote why."""
        if not self._jobs[index].folder:
            return
        place, record = self._place(index), {"schema": 1, "message": str(LostJob()), "mendable": LostJob.mendable}
        record |= {"overrides": list(self._jobs[index].overrides), "tries": tries_before(place, self.record.sweep)}
        try:
            save_json(place / FILE, record)
        except OSError as error:
            log.warning("the report will not tell of this failure: %s", one_line(error))


def failure_of(result: JobReturn) -> BaseException | None:
    """Why a job failed; asking for its `return_value` would print and raise."""
    failed: Any = result._return_value if result.status is JobStatus.FAILED else None
    return failed if isinstance(failed, BaseException) else None


def raise_failure(result: JobReturn) -> None:
    """Raise why a job failed, if it did, without the line that Hydra would print beside its sentence."""
    error = failure_of(result)
    if error is None:
        return
    if not isinstance(error, PipelineError):
        log.error("a fault in the job %s", one_line(" ".join(result.overrides or ())))
    raise error


def _subdir(folder: str) -> str:
    escaped = folder.replace("\\", "\\\\").replace("'", "\\'")
    return f"hydra.sweep.subdir='{escaped}'"
