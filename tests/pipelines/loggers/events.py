"""Reads event files of TensorBoard."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def event_values(folder: Path) -> Iterator[tuple[int, Any]]:
    """Step and value of every event: length, its checksum, data, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.glob("events.out.*")):
        raw, position = path.read_bytes(), 0
        while position < len(raw):
            (length,) = struct.unpack_from("<Q", raw, position)
            event = Event()
            event.ParseFromString(raw[position + 12 : position + 12 + length])
            position += 16 + length
            yield from ((event.step, value) for value in event.summary.value)


def scalars_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for step, value in event_values(folder):
        if value.WhichOneof("value") == "simple_value":
            found.setdefault(value.tag, []).append((step, value.simple_value))
    return found


def texts_of(folder: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for _, value in event_values(folder):
        if value.WhichOneof("value") == "tensor":
            found.setdefault(value.tag.removesuffix("/text_summary"), []).append(value.tensor.string_val[0].decode())
    return found
