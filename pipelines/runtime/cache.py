"""Stages on disk, shared by runs that depend on the same things."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from segquant.files import sync, write_json
from segquant_bench.pipelines.errors import PipelineError, is_disk_full, one_line
from segquant_bench.pipelines.runtime import events
from segquant_bench.pipelines.runtime.cost import measured
from segquant_bench.pipelines.runtime.finished import Finished as Finished
from segquant_bench.pipelines.runtime.health import (
    COSTS,
    RECORD,
    Damaged,
    files_of,
    read_record,
    set_aside,
    settle,
)
from segquant_bench.pipelines.runtime.interrupt import heard
from segquant_bench.pipelines.runtime.unfinished import PARTIAL, Unfinished, without_help

if sys.platform == "linux":
    import fcntl

FICLONE = 0x40049409
"""The kernel's request to share the blocks of a file (linux/fs.h)."""
log = logging.getLogger(__name__)


def make_cache(cache: Path) -> None:
    """PipelineError where there cannot be such a folder."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PipelineError(
            f"cache={cache} cannot be made ({error.strerror}); choose a place that can be written, cache=DIRECTORY"
        ) from error


def stage_key(name: str, depends: Mapping[str, Any]) -> str:
    """A hash in which the order of `depends` (JSON types) has no part."""
    text = json.dumps({"stage": name, "depends": depends}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def find_finished(name: str, cache: Path, depends: Mapping[str, Any]) -> Finished | None:
    return _finished(*_place(name, cache, depends))


def is_there(name: str, cache: Path, depends: Mapping[str, Any]) -> bool:
    """Whether a folder of that stage lies there; it is not looked into."""
    return _place(name, cache, depends)[0].exists()


def _place(name: str, cache: Path, depends: Mapping[str, Any]) -> tuple[Path, str, str]:
    key = stage_key(name, depends)
    return cache / "stage" / f"{name}-{key}", name, key


def run_stage(
    name: str,
    cache: Path,
    depends: Mapping[str, Any],
    compute: Callable[[Path], None],
    keeps: Sequence[str] = (),
) -> Finished:
    """The stage's folder, filled by `compute(folder)` unless it is there.

    It gets its name when complete. Runs that want the same stage wait. Failed computations are removed, killed ones by
    the next run. One whose files are not as they were written is set aside, and computed again.

    Args:
        depends: JSON types; everything that would change the result.
        keeps: folders whose files a run that was killed or interrupted leaves to the next, which then finds them in
            `folder`; without, that is empty. Each must have been written whole (`segquant.files.write_whole`).

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
            found = _finished(final, name, key)
            if found is None:
                _clear(final, name)
                found = _completed(final, name, key, keeps) or _compute(final, name, key, depends, compute, keeps)
            return found
    except OSError as error:
        if is_disk_full(error):
            raise _disk_full(name, cache) from error
        raise PipelineError(f"stage {name} in {final.parent} failed: {one_line(error)}") from error


def _finished(final: Path, name: str, key: str) -> Finished | None:
    """The stage, if it is there and undamaged."""
    if not final.exists():
        return None
    try:
        record = read_record(final)
    except (Damaged, FileNotFoundError):  # the second: set aside by another run meanwhile
        return None
    log.info("%s: done before (%.1f s then)", name, record["seconds"])
    seconds, peak, device_peak = COSTS
    return events.ended(Finished(name, key, final, record[seconds], record[peak], record.get(device_peak), cached=True))


def _clear(final: Path, name: str) -> None:
    """Set aside what is damaged; its lock is held, so that nobody else does."""
    if not final.exists():
        return
    try:
        read_record(final)
    except Damaged as damage:
        log.warning("%s: %s; kept as %s, and computed again", name, damage, set_aside(final).name)


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


def _completed(final: Path, name: str, key: str, keeps: Sequence[str]) -> Finished | None:
    """What a run had completed that was killed before it gave it its name."""
    partial = final.with_name(final.name + PARTIAL)
    try:
        if not keeps or not (partial / RECORD).is_file():
            return None
        read_record(partial)
    except Damaged:
        return None
    settle(partial)
    _publish(partial, final)
    return _finished(final, name, key)


def _publish(partial: Path, final: Path) -> None:
    """Until then all that was kept is there: a run that is killed here has lost nothing."""
    without_help(partial)
    partial.rename(final)
    sync(final.parent)


def _compute(
    final: Path,
    name: str,
    key: str,
    depends: Mapping[str, Any],
    compute: Callable[[Path], None],
    keeps: Sequence[str],
) -> Finished:
    unfinished = Unfinished(final, name, keeps)
    log.info("%s: computing", name)
    try:
        with measured() as cost, events.computing(name):
            compute(unfinished.path)
        partial = unfinished.path
        let_others_read(partial)
        seconds = round(unfinished.seconds + cost.seconds, 3)
        peak, device_peak = round(cost.peak_memory_mb, 1), cost.peak_device_memory_mb
        record = {"name": name, "key": key, "depends": dict(depends), "seconds": seconds, "peak_memory_mb": peak}
        record["peak_device_memory_mb"], record["files"] = device_peak, files_of(partial)
        write_json(partial / RECORD, record)
        settle(partial)
        _publish(partial, final)
    except BaseException as error:
        heard()  # or the next interrupt would cut the cleaning short
        unfinished.abandon(whole=isinstance(error, Exception))
        if is_disk_full(error):
            raise _disk_full(name, final.parent) from error
        raise
    log.info("%s: %.1f s, peak memory %.0f MB", name, seconds, peak)
    return events.ended(Finished(name, key, final, seconds, peak, device_peak, cached=False))


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


def copy_tree(source: Path, target: Path) -> None:
    """Copy a folder; whatever is done to the copy, the source stays.

    Where the file system can (btrfs, XFS), both share the disk's blocks until one is written to.
    """
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, copy_function=_clone_or_copy)


def _clone_or_copy(origin: str, copy: str) -> str:
    if not _clone(origin, copy):
        shutil.copyfile(origin, copy)
    shutil.copystat(origin, copy)
    return copy


def _clone(origin: str, copy: str) -> bool:
    if sys.platform != "linux":
        return False
    with open(origin, "rb") as source, open(copy, "wb") as target:
        try:
            fcntl.ioctl(target.fileno(), FICLONE, source.fileno())
        except OSError:  # another file system, or one that does not share blocks
            return False
    return True
