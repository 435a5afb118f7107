"""`segquant-status`: how far a sweep is."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.jobs import DONE, FAILED
from segquant_bench.eval.status import DAMAGED, RUNNING, STOPPED, WAITING, State, Status, read_status
from segquant_bench.texts import plain

LISTED = (RUNNING, FAILED, STOPPED, DAMAGED)
"""States whose jobs are listed one by one."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, 1 if jobs failed, were stopped or are damaged, 2 with one sentence on stderr for bad input."""
    parser = argparse.ArgumentParser(
        prog="segquant-status",
        description="How far sweeps are: done, running, failed and waiting jobs, and the time that is left.",
    )
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR", help="sweep or run folder")
    parser.add_argument("--json", action="store_true", help="the same for programs: a list with an entry per DIR")
    options = parser.parse_args(argv)
    try:
        found = [read_status(folder) for folder in options.directories]
    except (EvalError, OSError) as error:
        sys.stderr.write(f"segquant-status: {plain(str(error))}\n")
        return 2
    if options.json:
        sys.stdout.write(json.dumps([_record(status) for status in found], indent=1) + "\n")
    else:
        sys.stdout.writelines(f"{plain(line)}\n" for status in found for line in _lines(status))
    return 1 if any(status.problems or status.needs_a_look for status in found) else 0


def _lines(status: Status) -> Iterator[str]:
    counts = status.counts
    told = [f"{count} {state}" for state, count in counts.items() if count or state in (DONE, RUNNING, FAILED, WAITING)]
    yield f"{status.folder}: {_asked(status)}: {', '.join(told)}"
    yield from (f"  {line}" for line in (_time(status), _sweep(status)) if line)
    for state in LISTED:
        for job in status.jobs:
            if job.state == state:
                yield f"  {state}: {job.name}{_since(job)}{f': {job.why}' if job.why else ''}"
    yield from (f"  {DAMAGED}: {sentence}" for sentence in status.problems)
    if status.killed:
        jobs = f"{len(status.killed)} job{'s' if len(status.killed) != 1 else ''}"
        yield f"  and {jobs} of this search that a kill ended, and that it drew again: {', '.join(status.killed)}"
    if status.others:
        runs = f"{status.others} run{'s' if status.others != 1 else ''}"
        yield f"  and {runs} of earlier commands (a search that was gone on with, other sweeps)"


def _asked(status: Status) -> str:
    jobs = f"{status.total} job{'s' if status.total != 1 else ''}"
    return jobs if status.sweep is not None else f"{jobs} found (how many were asked for is not recorded)"


def _time(status: Status) -> str:
    if status.sweep is None and not status.counts[RUNNING]:
        return ""
    if status.seconds_left is not None:
        return f"time left: about {duration(status.seconds_left)}"
    if status.counts[RUNNING] or (status.counts[WAITING] and not status.is_over):
        return "time left: not known before a job is done"
    return ""


def _sweep(status: Status) -> str:
    sweep = status.sweep
    if sweep is None:
        return ""
    if sweep.ended is not None:
        waiting = f"; {status.counts[WAITING]} jobs were never begun" if status.counts[WAITING] else ""
        return f"ended after {duration(sweep.ended - sweep.began)}{waiting}"
    if sweep.is_alive:
        return f"running for {duration(time.time() - sweep.began)} on {sweep.host}"
    return f"the sweep's own process ({sweep.pid} on {sweep.host}) is lost; the same command goes on where it stopped"


def _since(job: State) -> str:
    if job.state != RUNNING or job.job is None:
        return ""
    tried = f", try {job.job.tries}" if job.job.tries > 1 else ""
    return f" ({duration(time.time() - job.job.began)} on {job.job.host}{tried})"


def duration(seconds: float) -> str:
    """
    >>> duration(95.2), duration(130), duration(7260), duration(90000)
    ('95 s', '2 min', '2 h 1 min', '1 d 1 h')
    """
    whole = max(round(seconds), 0)
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole // 60} min" if whole >= 120 else f"{whole} s"


def _record(status: Status) -> dict[str, object]:
    left = status.seconds_left
    jobs = [{"folder": job.name, "state": job.state, "why": job.why} for job in status.jobs]
    return {
        "folder": str(status.folder), "total": status.total, **status.counts, "over": status.is_over,
        "seconds_left": None if left is None else round(left), "jobs": jobs, "problems": list(status.problems),
        "killed": list(status.killed), "earlier": status.others,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
