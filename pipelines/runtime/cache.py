"""Stages on disk, shared by runs that depend on the same things."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from segquant.files import write_json
from segquant_bench.pipelines.errors import PipelineError, is_disk_full, one_line
from segquant_bench.pipelines.runtime.cost import measured
from segquant_bench.pipelines.runtime.interrupt import heard

log = logging.getLogger(__name__)

RECORD = "stage.json"
COSTS = ("seconds", "peak_memory_mb", "peak_device_memory_mb")
"""What is read of a record; the last is None on a CPU."""


@dataclass(frozen=True)
class Finished:
    """A finished stage.

    Attributes:
        key: hash of everything it depends on.
        seconds: wall-clock, also of an earlier run.
        peak_device_memory_mb: None on a CPU.
        cached: whether this run found it finished.
    """

    name: str
    key: str
    path: Path
    seconds: float
    peak_memory_mb: float
    peak_device_memory_mb: float | None
    cached: bool


def stage_key(name: str, depends: Mapping[str, Any]) -> str:
    """A hash in which the order of `depends` (JSON types) has no part."""
    text = json.dumps({"stage": name, "depends": depends}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def find_finished(name: str, cache: Path, depends: Mapping[str, Any]) -> Finished | None:
    return _finished(*_place(name, cache, depends))


def _place(name: str, cache: Path, depends: Mapping[str, Any]) -> tuple[Path, str, str]:
    key = stage_key(name, depends)
    return cache / "stage" / f"{name}-{key}", name, key


def run_stage(name: str, cache: Path, depends: Mapping[str, Any], compute: Callable[[Path], None]) -> Finished:
    """The stage's folder, filled by `compute(empty folder)` unless it is there.

    It gets its name when complete. Runs that want the same stage wait. Failed computations are removed, killed ones by
    the next run.

    Args:
        depends: JSON types; everything that would change the result.

    Raises:
        PipelineError: the disk is full, or a file cannot be read or written.
    """
    final, name, key = _place(name, cache, depends)
    found = _finished(final, name, key)
    if found is not None:
        return found
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with _held(final.with_name(final.name + ".lock"), name):
            return _finished(final, name, key) or _compute(final, name, key, depends, compute)
    except OSError as error:
        if is_disk_full(error):
            raise _disk_full(name, cache) from error
        raise PipelineError(f"stage {name} in {final.parent} failed: {one_line(error)}") from error


def _finished(final: Path, name: str, key: str) -> Finished | None:
    record = final / RECORD
    if not record.is_file():
        return None
    seconds, peak, device_peak = _costs(record)
    log.info("%s: done before (%.1f s then)", name, seconds)
    return Finished(name, key, final, seconds, peak, device_peak, cached=True)


def _costs(record: Path) -> tuple[float, float, float | None]:
    try:
        raw = json.loads(record.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _broken(record, f"is not readable JSON ({one_line(error)})") from error
    held = raw if isinstance(raw, dict) else {}
    seconds, peak, device_peak = COSTS
    for key in COSTS:
        if not _is_cost(held.get(key)) and not (key == device_peak and held.get(key) is None):
            raise _broken(record, f"has no number of {key}")
    return held[seconds], held[peak], held.get(device_peak)


def _is_cost(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _broken(record: Path, why: str) -> PipelineError:
    return PipelineError(f"{record} {why}; delete the folder {record.parent}, and the stage is computed again")


@contextmanager
def _held(path: Path, name: str) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s: another run is computing it, waiting", name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _compute(final: Path, name: str, key: str, depends: Mapping[str, Any], compute: Callable[[Path], None]) -> Finished:
    for leftover in final.parent.glob(f"{final.name}.partial*"):
        log.info("%s: removing what a killed run left", name)
        shutil.rmtree(leftover)
    partial = final.with_name(f"{final.name}.partial{os.getpid()}")
    log.info("%s: computing", name)
    try:
        partial.mkdir()
        with measured() as cost:
            compute(partial)
        let_others_read(partial)
        seconds, peak, device_peak = round(cost.seconds, 3), round(cost.peak_memory_mb, 1), cost.peak_device_memory_mb
        record = {"name": name, "key": key, "depends": dict(depends), "seconds": seconds, "peak_memory_mb": peak}
        record["peak_device_memory_mb"] = device_peak
        write_json(partial / RECORD, record)
        partial.rename(final)
    except BaseException as error:
        heard()  # or the next interrupt would cut the cleaning short
        shutil.rmtree(partial, ignore_errors=True)
        if is_disk_full(error):
            raise _disk_full(name, final.parent) from error
        raise
    log.info("%s: %.1f s, peak memory %.0f MB", name, cost.seconds, cost.peak_memory_mb)
    return Finished(name, key, final, seconds, peak, device_peak, cached=False)


def let_others_read(folder: Path) -> None:
    """Open a folder's files as the umask allows: safetensors and temporary folders are made private."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.rglob("*"):
        wanted, mode = (0o777 if path.is_dir() else 0o666) & ~umask, path.lstat().st_mode & 0o777
        if mode & wanted != wanted and not path.is_symlink():
            path.chmod(mode | wanted)


def _disk_full(name: str, where: Path) -> PipelineError:
    return PipelineError(
        f"the disk is full: stage {name} could not be written to {where}; free some space or set "
        "cache=DIRECTORY on another disk"
    )


def link_tree(source: Path, target: Path) -> None:
    """Copy a folder, by hard links on one file system."""
    shutil.rmtree(target, ignore_errors=True)

    def link_or_copy(origin: str, copy: str) -> str:
        try:
            os.link(origin, copy)
        except OSError as error:
            if is_disk_full(error):
                raise
            shutil.copy2(origin, copy)  # another file system, or one without hard links
        return copy

    shutil.copytree(source, target, copy_function=link_or_copy)
