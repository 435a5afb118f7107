"""All results of a report in one SQLite file, read in place of the JSON files as long as these stay as they were.

Tables: `runs`, `metrics` and `stages` (by `run`, the id of `runs`), `failures`. `files` holds size, time of the last
write and content of every results.json. The file is made from these alone, and may be deleted.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.failures import Failure
from segquant_bench.eval.files import publish
from segquant_bench.eval.json_checks import LARGEST as LARGEST_NUMBER
from segquant_bench.eval.json_checks import WHOLE, is_deep
from segquant_bench.eval.results import RunResult, checked_results, result_of
from segquant_bench.eval.results_file import check_results
from segquant_bench.texts import plain

log = logging.getLogger(__name__)

STORE = "runs.sqlite"
VERSION = 1
LARGEST = 1 << 28
"""Bytes that the content of one results.json may unpack to."""
_COLUMNS = (
    "path", "name", "model", "model_fingerprint", "quantizer", "precision", "dataset", "seed", "calibration_seed",
    "n_images", "engine", "config_hash", "layer_error", "output_error", "weight_bytes", "weight_bytes_float", "device",
    "git", "config", "layer_errors",
)  # fmt: skip
SCHEMA = f"""
CREATE TABLE files (path TEXT PRIMARY KEY, size INTEGER, written INTEGER, content BLOB);
CREATE TABLE runs (run INTEGER PRIMARY KEY, {", ".join(_COLUMNS)}, UNIQUE (path));
CREATE TABLE metrics (run INTEGER, name TEXT, value REAL, low REAL, high REAL, n INTEGER, direction TEXT, unit TEXT);
CREATE TABLE stages (run INTEGER, stage TEXT, seconds REAL, peak_memory_mb REAL);
CREATE TABLE failures (path TEXT, name TEXT, model TEXT, dataset TEXT, precision TEXT, seed TEXT, tries INTEGER,
                       message TEXT);
CREATE INDEX metrics_of_run ON metrics (run);
CREATE INDEX stages_of_run ON stages (run);
PRAGMA user_version = {VERSION};
"""
Known = Mapping[str, tuple[int, int, bytes]]


class Store:
    """The file at `path`; paths in it are relative to its folder, so that both move together."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self, paths: Sequence[Path], failures: Sequence[Failure] = ()) -> list[RunResult]:
        """As `read`, and the file is brought up to date at once."""
        found, update = self.read(paths, failures)
        update()
        return found

    def read(
        self, paths: Sequence[Path], failures: Sequence[Failure] = ()
    ) -> tuple[list[RunResult], Callable[[], None]]:
        """The results at `paths`, of which nothing but what changed is read.

        Returns:
            The results, and what makes the file hold these alone.

        Raises:
            EvalError: as `load_result`.
        """
        known = self._known()
        found, fresh = [], {}
        for path in paths:
            key, stat = self._key(path), path.stat()
            entry = known.get(key)
            raw = _content(entry[2]) if entry is not None and entry[:2] == (stat.st_size, stat.st_mtime_ns) else None
            if raw is None:
                raw = checked_results(path)
                fresh[key] = (stat.st_size, stat.st_mtime_ns, zlib.compress(json.dumps(raw).encode(), 1))
            found.append(result_of(path, raw))
        runs = dict(zip(map(self._key, paths), found, strict=True))
        return found, lambda: self._write(known, runs, fresh, failures)

    def query(self, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Heads and rows of a query, which cannot write; EvalError for one that is wrong."""
        with closing(sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            connection.execute("PRAGMA query_only = on")
            try:
                cursor = connection.execute(sql)
                rows = cursor.fetchall()
            except (sqlite3.Error, sqlite3.Warning, UnicodeDecodeError) as error:
                if type(error) is sqlite3.DatabaseError or isinstance(error, UnicodeDecodeError):
                    told = plain(str(error))
                    raise EvalError(f"{self.path} is damaged ({told}); delete it, it is made again") from error
                raise EvalError(f"the query is wrong ({error}); tables are {_tables(connection)}") from error
            return [column[0] for column in cursor.description or ()], rows

    def _key(self, path: Path) -> str:
        return str(_storable(os.path.relpath(path, self.path.resolve().parent)))

    def _known(self) -> Known:
        """What an undamaged file of this version holds."""
        if not self.path.is_file():
            return {}
        try:
            with closing(sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
                if connection.execute("PRAGMA user_version").fetchone() != (VERSION,):
                    raise sqlite3.DatabaseError("it is of another version")
                rows = connection.execute("SELECT path, size, written, content FROM files").fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            log.warning("%s is made again: %s", plain(str(self.path)), plain(str(error)))
            self.path.unlink()
            return {}
        return {path: (size, written, content) for path, size, written, content in rows}

    def _write(self, known: Known, runs: Mapping[str, RunResult], fresh: Known, failures: Sequence[Failure]) -> None:
        try:
            self._update(known, runs, fresh, failures)
        except sqlite3.DatabaseError as error:
            if not known:
                raise EvalError(f"{self.path} cannot be written ({plain(str(error))}); delete it") from error
            log.warning("%s is made again: %s", plain(str(self.path)), plain(str(error)))
            self._update({}, runs, {key: fresh.get(key) or known[key] for key in runs}, failures)

    def _update(self, known: Known, runs: Mapping[str, RunResult], fresh: Known, failures: Sequence[Failure]) -> None:
        """Update a copy and give it the name: a shared disk has no locks that SQLite could trust."""

        def update(temporary: str) -> None:
            if known:
                shutil.copyfile(self.path, temporary)
            with closing(sqlite3.connect(temporary)) as connection:
                if not known:
                    connection.executescript(SCHEMA)
                with connection:
                    _delete(connection, [*(known.keys() - runs.keys()), *(known.keys() & fresh.keys())])
                    for key, entry in fresh.items():
                        connection.execute("INSERT INTO files VALUES (?, ?, ?, ?)", (key, *entry))
                        _insert(connection, key, runs[key])
                    connection.execute("DELETE FROM failures")
                    connection.executemany(
                        "INSERT INTO failures VALUES (?, ?, ?, ?, ?, ?, ?, ?)", self._failed(failures)
                    )

        publish(self.path, update)

    def _failed(self, failures: Sequence[Failure]) -> Iterator[tuple[Any, ...]]:
        for each in failures:
            known = (each.name, each.model, each.dataset, each.precision, each.seed)
            yield tuple(map(_storable, (self._key(each.path), *known, each.tries, each.message)))


def _storable(value: Any) -> Any:
    """Texts without the halves of characters (surrogates), whole numbers of 64 bits: SQLite takes no others."""
    if isinstance(value, int) and abs(value) >= WHOLE:
        return float(value) if abs(value) <= LARGEST_NUMBER else None
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _content(blob: bytes) -> dict[str, Any] | None:
    """None where it is damaged, or holds what no `results.json` may: the file may be somebody else's."""
    try:
        unpacker = zlib.decompressobj()
        found = json.loads(unpacker.decompress(blob, LARGEST))
    except (zlib.error, ValueError, TypeError, RecursionError):
        return None
    whole = unpacker.eof and not is_deep(found)
    return found if whole and next(check_results(found, ""), None) is None else None


def _delete(connection: sqlite3.Connection, keys: Sequence[str]) -> None:
    for key in keys:
        for table in ("metrics", "stages"):
            connection.execute(f"DELETE FROM {table} WHERE run IN (SELECT run FROM runs WHERE path = ?)", (key,))
        for table in ("runs", "files"):
            connection.execute(f"DELETE FROM {table} WHERE path = ?", (key,))


def _insert(connection: sqlite3.Connection, key: str, run: RunResult) -> None:
    marks = ", ".join("?" * len(_COLUMNS))
    row = connection.execute(
        f"INSERT INTO runs ({', '.join(_COLUMNS)}) VALUES ({marks})", tuple(map(_storable, _row(key, run)))
    ).lastrowid
    connection.executemany(
        "INSERT INTO metrics VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            tuple(map(_storable, (row, m.name, m.value, *(m.interval or (None, None)), m.n, m.direction, m.unit)))
            for m in run.metrics
        ],
    )
    connection.executemany(
        "INSERT INTO stages VALUES (?, ?, ?, ?)",
        [
            tuple(map(_storable, (row, name, cost.get("seconds"), cost.get("peak_memory_mb"))))
            for name, cost in run.stages.items()
        ],
    )


def _row(key: str, run: RunResult) -> tuple[Any, ...]:
    errors = [error for error in run.every_layer_error.values() if error > 0.0]
    mean = math.exp(math.fsum(map(math.log, errors)) / len(errors)) if errors else None
    seed = (run.config.get("calibration") or {}).get("seed")
    return (
        key, run.name, run.model, run.fingerprint, run.quantizer, run.precision, run.dataset, run.seed,
        seed if isinstance(seed, int) else None, run.n_images, run.engine, run.config_hash, mean, run.output_error,
        run.weight_bytes, run.weight_bytes_float, str(run.device.get("name") or ""), run.git, json.dumps(run.config),
        json.dumps(run.every_layer_error),
    )  # fmt: skip


def _tables(connection: sqlite3.Connection) -> str:
    names = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    columns = {name: [row[1] for row in connection.execute(f"PRAGMA table_info({name})")] for name in names}
    return ", ".join(f"{name} ({', '.join(held)})" for name, held in columns.items() if name != "files")
