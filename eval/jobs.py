"""What a sweep writes while it runs: a hidden file of its own, and one in the folder of every job that has begun."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segquant_bench.eval.json_checks import (
    AMOUNT,
    ANYTHING,
    COUNT,
    INSIDE,
    SCALAR,
    TEXT,
    Check,
    list_of,
    one_of,
    read_checked,
    record,
)

SWEEP, JOB = ".sweep.json", ".job.json"
SCHEMA = 1
BEAT = 20.0
"""Seconds between two signs of life: the file's time is set anew."""
SILENT = 9 * BEAT
"""Seconds without a sign after which a process is taken for lost; clocks of a cluster may differ by less."""
DONE, FAILED, ENDED, PRUNED = "done", "failed", "ended", "pruned"
"""How a job came to its end; ENDED by a signal, PRUNED by a search, before any picture."""
AGAIN = "the same command writes it anew"

_PROCESS: dict[str, Check] = {
    "schema": one_of((SCHEMA,)),
    "sweep": TEXT,
    "began": AMOUNT,
    "host": TEXT,
    "pid": COUNT,
    "place": TEXT,
}
_JOB = record(
    {**_PROCESS, "tries": COUNT}, {"ended": AMOUNT, "outcome": one_of((DONE, FAILED, ENDED, PRUNED)), "value": ANYTHING}
)
_LISTED = record({"overrides": list_of(SCALAR)}, {"folder": INSIDE})
_SWEEP = record({**_PROCESS, "jobs": list_of(_LISTED), "total": COUNT}, {"ended": AMOUNT})


@dataclass(frozen=True)
class Process:
    """What ran, or runs: on which machine, since when, and when it last gave a sign."""

    path: Path
    sweep: str
    began: float
    ended: float | None
    host: str
    pid: int
    place: str
    seen: float

    @property
    def is_alive(self) -> bool:
        """Whether it runs: it gives signs, and on this machine there is such a process."""
        if self.ended is not None or time.time() - self.seen >= SILENT:
            return False
        return self.place != this_place() or _exists(self.pid)


@dataclass(frozen=True)
class Job(Process):
    """One job's last try; `tries` counts it, `outcome` is None while it runs, `value` is what it returned."""

    tries: int
    outcome: str | None
    value: Any


@dataclass(frozen=True)
class Listed:
    """A job that a sweep was asked for; the folder, relative to the sweep's, is "" where it cannot be known before."""

    folder: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Sweep(Process):
    """A sweep; `total` counts jobs that are not listed yet too."""

    jobs: tuple[Listed, ...]
    total: int


def load_job(path: Path) -> Job:
    """EvalError, with what to do, if it is damaged."""
    raw = read_checked(path, _JOB, AGAIN)
    return Job(**_process(path, raw), tries=raw["tries"], outcome=raw.get("outcome"), value=raw.get("value"))


def load_sweep(path: Path) -> Sweep:
    """EvalError, with what to do, if it is damaged."""
    raw = read_checked(path, _SWEEP, AGAIN)
    jobs = tuple(Listed(each.get("folder") or "", tuple(map(str, each["overrides"]))) for each in raw["jobs"])
    return Sweep(**_process(path, raw), jobs=jobs, total=max(raw["total"], len(jobs)))


def _process(path: Path, raw: dict[str, Any]) -> dict[str, Any]:
    known = {key: raw[key] for key in ("sweep", "began", "host", "pid", "place")}
    return {**known, "path": path, "ended": raw.get("ended"), "seen": path.stat().st_mtime}


def this_process() -> dict[str, Any]:
    """Who writes a record."""
    return {"schema": SCHEMA, "host": socket.gethostname(), "pid": os.getpid(), "place": this_place()}


def this_place() -> str:
    """Where numbers of processes mean the same: one start of one machine, and one container on it."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return socket.gethostname()


def _exists(pid: int) -> bool:
    if not Path("/proc/self/stat").exists():
        return True
    try:
        # behind the name, which may hold anything, is the state; a zombie has ended
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False
