"""How far a sweep is: from what its jobs left in their folders, which may be on another machine's disk."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.failures import AGAIN as RUN_AGAIN
from segquant_bench.eval.failures import FILE as FAILURE
from segquant_bench.eval.failures import load_failure
from segquant_bench.eval.files import find_named
from segquant_bench.eval.jobs import DONE, ENDED, FAILED, JOB, PRUNED, SWEEP, Job, Sweep, load_job, load_sweep
from segquant_bench.eval.json_checks import read_checked
from segquant_bench.eval.results import RESULTS
from segquant_bench.eval.results_file import check_results
from segquant_bench.eval.study import FILE as STUDY
from segquant_bench.eval.study import load_searches

RUNNING, STOPPED, WAITING, DAMAGED = "running", "stopped", "waiting", "damaged"
AGAIN = "the same command goes on there"
STATES = (DONE, PRUNED, RUNNING, WAITING, FAILED, STOPPED, DAMAGED)


@dataclass(frozen=True)
class State:
    """One job: `name` is its folder, `why` a sentence where one is needed."""

    name: str
    state: str
    why: str = ""
    job: Job | None = None


@dataclass(frozen=True)
class Status:
    """A folder of runs.

    Attributes:
        sweep: None where nothing is recorded of one (single runs, earlier versions).
        total: how many jobs were asked for; those that were found, without a sweep.
        killed: jobs of this search that a kill ended; their points were drawn again, as other jobs.
        others: runs of earlier commands in the same folder: other sweeps, or this search before it was gone on with.
        problems: sentences about what is damaged beside the jobs.
    """

    folder: Path
    sweep: Sweep | None
    jobs: tuple[State, ...]
    total: int
    others: int
    problems: tuple[str, ...]
    killed: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        found = Counter(job.state for job in self.jobs)
        found[WAITING] += max(self.total - len(self.jobs), 0)  # not listed yet
        return {state: found[state] for state in STATES}

    @property
    def needs_a_look(self) -> bool:
        return any(each.state in (FAILED, STOPPED, DAMAGED) for each in self.jobs)

    @property
    def is_over(self) -> bool:
        """Whether nothing runs that would begin waiting jobs."""
        return self.sweep is None or not self.sweep.is_alive

    @property
    def seconds_left(self) -> float | None:
        """By the mean of finished jobs, as many at once as run now; None where that tells nothing."""
        finished = [each.job for each in self.jobs if each.state == DONE and each.job is not None]
        seconds = [job.ended - job.began for job in finished if job.ended is not None]
        if not seconds or (self.is_over and not self.counts[RUNNING]):
            return None
        mean, now = sum(seconds) / len(seconds), time.time()
        running = [each.job for each in self.jobs if each.state == RUNNING and each.job is not None]
        left = [max(mean - (now - job.began), 0.0) for job in running]
        waiting = 0 if self.is_over else self.counts[WAITING]
        return max([(sum(left) + waiting * mean) / max(len(running), 1), *left])


def read_status(folder: Path) -> Status:
    """EvalError if there is no such folder, or nothing of a run in it."""
    if not folder.is_dir():
        raise EvalError(f"{folder} is no directory; give the sweep or run folder that segquant writes into")
    sweep, problems = _sweep(folder)
    places = sorted({path.parent for name in (JOB, RESULTS, FAILURE) for path in find_named(folder, name)})
    if sweep is None:
        if not places and not problems:
            raise EvalError(f"{folder} has no run in it, begun or finished; give the sweep or run folder of segquant")
        jobs = [_state(folder, place, None) for place in places]
        return Status(folder, None, tuple(jobs), len(jobs), 0, tuple(problems))
    mine = list(_listed(folder, sweep))
    known = {(folder / each.folder).resolve() for each in sweep.jobs}
    more = [_state(folder, place, sweep) for place in places if place.resolve() not in known]
    refused = [each for each in more if each.name.startswith("refused_") and each.state == FAILED]
    killed = _killed(folder, more)
    total, others = max(sweep.total, len(mine)), len(more) - len(refused) - len(killed)
    return Status(folder, sweep, (*mine, *refused), total, others, tuple(problems), killed)


def _killed(folder: Path, places: Iterable[State]) -> tuple[str, ...]:
    """Folders of a search's jobs that never ended, as a search that was gone on with leaves them."""
    if not (folder / STUDY).exists():
        return ()
    try:
        trials = {trial.folder for search in load_searches([folder]) for trial in search.trials}
    except (EvalError, OSError):  # told of by the report; which jobs ran can be told without it
        return ()
    return tuple(each.name for each in places if each.name in trials and _is_killed(folder / each.name))


def _is_killed(place: Path) -> bool:
    try:
        job = load_job(place / JOB)
    except (EvalError, OSError):
        return False
    return job.ended is None and not job.is_alive


def _sweep(folder: Path) -> tuple[Sweep | None, list[str]]:
    if not (folder / SWEEP).exists():
        return None, []
    try:
        return load_sweep(folder / SWEEP), []
    except (EvalError, OSError) as error:
        return None, [str(error)]


def _listed(folder: Path, sweep: Sweep) -> Iterator[State]:
    seen: set[str] = set()
    for each in sweep.jobs:
        if each.folder and each.folder not in seen:
            seen.add(each.folder)
            yield _state(folder, folder / each.folder, sweep)
        else:
            name = " ".join(each.overrides)
            why = f"it shares the folder {each.folder} with another job" if each.folder else "its folder is not known"
            yield State(name, WAITING if not sweep.ended else FAILED, why)


def _state(folder: Path, place: Path, sweep: Sweep | None) -> State:
    """How a job of a sweep is; None is any."""
    name = str(place.relative_to(folder)) if place != folder else place.name
    try:
        job = load_job(place / JOB) if (place / JOB).exists() else None
        if sweep is not None and (job is None or job.sweep != sweep.sweep):
            return _not_begun(name, sweep)
        return _begun(name, place, job)
    except (EvalError, OSError) as error:
        return State(name, DAMAGED, str(error))


def _not_begun(name: str, sweep: Sweep) -> State:
    if sweep.ended is None and sweep.is_alive:
        return State(name, WAITING)
    return State(name, WAITING, "nothing will begin it: the sweep has ended")


def _begun(name: str, place: Path, job: Job | None) -> State:
    if job is not None and job.is_alive:
        return State(name, RUNNING, last_line(place), job)
    if (place / FAILURE).exists():
        failure = load_failure(place / FAILURE)
        more = f" (tried {failure.tries} times)" if failure.tries > 1 else ""
        return State(name, FAILED, failure.message + more, job)
    if job is not None and job.outcome == ENDED:
        return State(name, STOPPED, f"ended by a signal; {AGAIN}", job)
    if job is not None and job.ended is None:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.seen))
        return State(name, STOPPED, f"lost on {job.host}, where process {job.pid} was last seen {when}; {AGAIN}", job)
    if job is not None and job.outcome == PRUNED:
        return State(name, PRUNED, "", job)
    if not (place / RESULTS).exists():
        return State(name, DAMAGED, f"{place / RESULTS} is missing, although the run ended; {AGAIN}", job)
    read_checked(place / RESULTS, check_results, RUN_AGAIN)
    return State(name, DONE, "", job)


def last_line(place: Path) -> str:
    """Of a job's log: what it does."""
    logs = sorted(place.glob("*.log"), key=lambda path: path.stat().st_mtime)
    if not logs:
        return ""
    with logs[-1].open("rb") as file:
        file.seek(max(logs[-1].stat().st_size - 4000, 0))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
