"""Whether a finished stage still is what was written, and setting aside one that is not."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from segquant.files import sync
from segquant_bench.hidden import is_hidden
from segquant_bench.pipelines.errors import one_line
from segquant_bench.pipelines.runtime.digests import file_digest

RECORD = "stage.json"
COSTS = ("seconds", "peak_memory_mb", "peak_device_memory_mb")
"""What is read of a record; the last is None on a CPU."""
ASIDE = ".damaged"
_NOBODYS = ("Thumbs.db", "desktop.ini")
"""Files that file managers leave, besides hidden ones."""
_seen: dict[str, tuple[int, int, str]] = {}
"""By path, size, time of the last write and sha256 of files that were read whole in this process."""


class Damaged(Exception):
    """What is wrong, as the end of a sentence."""


def files_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file of a stage, by its path in the folder."""
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": file_digest(path)}
        for path in _files(folder)
    }


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a stage whose files all are as they were written.

    Sizes are compared each time, contents once per process or when a file was written to since.

    Raises:
        Damaged: it is not, or its record cannot be read.
    """
    record = _record(folder)
    known, found = record["files"], {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    for name in known:
        if name not in found:
            raise Damaged(f"{one_line(name)} is missing")
    for name, path in found.items():
        if name not in known:
            raise Damaged(f"{one_line(name)} is not one of its files")
        _check(name, path, known[name])
    return record


def set_aside(folder: Path) -> Path:
    """Give a folder another name, so that the stage can be computed again; its new path."""
    for number in range(1, 10_000):
        place = folder.with_name(f"{folder.name}{ASIDE}{number}")
        if not place.exists():
            folder.rename(place)
            return place
    raise OSError(f"{folder.parent} has too many damaged folders; delete some")


def settle(folder: Path) -> None:
    """Let the disk have all that a folder holds, before it gets its name."""
    for path in (*_files(folder, every=True), *(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync(path)


def _record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    if path.exists() and not path.is_file():  # reading a pipe waits for ever
        raise Damaged(f"{RECORD} is {'a folder' if path.is_dir() else 'no file'}")
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise Damaged(f"{RECORD} is missing") from error
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{RECORD} is not readable JSON ({one_line(error)})") from error
    record = raw if isinstance(raw, dict) else {}
    for key in COSTS:
        if not _is_cost(record.get(key)) and not (key == COSTS[-1] and record.get(key) is None):
            raise Damaged(f"{RECORD} has no number of {key}")
    if not isinstance(record.get("files"), dict):
        raise Damaged(f"{RECORD} does not say which files it is made of (earlier versions did not)")
    return record


def _is_cost(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _check(name: str, path: Path, known: Any) -> None:
    stat, entry = path.stat(), known if isinstance(known, Mapping) else {}
    if stat.st_size != entry.get("size"):
        raise Damaged(f"{one_line(name)} has {stat.st_size} bytes instead of {entry.get('size')}")
    seen = _seen.get(str(path))
    if seen is None or seen[:2] != (stat.st_size, stat.st_mtime_ns):
        seen = _seen[str(path)] = (stat.st_size, stat.st_mtime_ns, file_digest(path))
    if seen[2] != entry.get("sha256"):
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(stat.st_mtime))
        raise Damaged(f"{one_line(name)} has another content than when it was written (changed {when})")


def _files(folder: Path, every: bool = False) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        ours = not is_hidden(path, folder) and path.name not in _NOBODYS and path != folder / RECORD
        if path.is_file() and (ours or every):
            yield path
