"""Reads what an offline run of W&B holds from its file."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7


def _records(path: Path) -> Iterator[bytes]:
    """Records of a .wandb file: 7 bytes, then a LevelDB log (checksum, length, type; blocks of 32 KiB)."""
    raw, position, parts = path.read_bytes(), HEADER, b""
    while position + HEADER <= len(raw):
        left = BLOCK - position % BLOCK
        if left < HEADER:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", raw, position)
        data = raw[position + HEADER : position + HEADER + length]
        if len(data) < length:  # still being written
            return
        position += HEADER + length
        parts = data if kind in (1, 2) else parts + data
        if kind in (1, 4):
            yield parts


@dataclass
class Offline:
    """One run.

    Attributes:
        rows: what each call of `log` gave, in order.
        steps: by name of a curve, what it is drawn over.
        preempting: whether W&B was told that it will go on.
        exit_code: None before its end.
    """

    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: list[Any] = field(default_factory=list)
    steps: dict[str, str] = field(default_factory=dict)
    system: set[str] = field(default_factory=set)
    preempting: bool = False
    exit_code: int | None = None

    @property
    def history(self) -> dict[str, Any]:
        """The last value of everything."""
        return {key: value for row in self.rows for key, value in row.items()}

    def values(self, key: str) -> list[Any]:
        return [row[key] for row in self.rows if key in row]


def offline_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("**/offline-run-*/run-*.wandb"))


def read_offline(folder: Path, is_whole: Callable[[Offline], bool] | None = None, patience: float = 60.0) -> Offline:
    """The one offline run below `folder` once it ended: wandb's service may still be writing then."""
    deadline = time.monotonic() + patience
    is_whole = is_whole or (lambda found: found.exit_code is not None)
    while True:
        (path,) = offline_files(folder)
        found = _read_now(path)
        if is_whole(found) or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def _read_now(path: Path) -> Offline:
    from wandb.proto import wandb_internal_pb2

    found = Offline()
    for data in _records(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
            found.config.update(_items(record.run.config.update))
        elif kind == "history":
            found.rows.append(_items(record.history.item))
        elif kind == "summary":
            found.summary.update(_items(record.summary.update))
        elif kind == "artifact":
            found.artifacts.append(record.artifact)
        elif kind == "request" and record.request.HasField("log_artifact"):
            found.artifacts.append(record.request.log_artifact.artifact)
        elif kind == "metric" and record.metric.step_metric:
            found.steps[record.metric.name] = record.metric.step_metric
        elif kind == "stats":
            found.system.update(item.key for item in record.stats.item)
        elif kind == "preempting":
            found.preempting = True
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
