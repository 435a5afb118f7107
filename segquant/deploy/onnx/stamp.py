"""Digests of an export's files, in the manifest that one of them holds."""

from __future__ import annotations

import hashlib
from pathlib import Path

from segquant.files import sha256_of

UNSTAMPED = "0" * 64
"""In the place of a digest until the file is written; a digest of the model's file counts itself as this."""


def stamp(model: Path, data: Path) -> None:
    """Put digests into a file whose manifest has `UNSTAMPED` for them; of the weights' file if there is one."""
    content = bytearray(model.read_bytes())
    if data.is_file():
        _put(content, "data_sha256", sha256_of(data))
    _put(content, "sha256", hashlib.sha256(content).hexdigest())
    model.write_bytes(content)


def _put(content: bytearray, key: str, digest: str) -> None:
    before = f'"{key}": "{UNSTAMPED}"'.encode()
    start = content.rindex(before)
    content[start : start + len(before)] = f'"{key}": "{digest}"'.encode()


def is_as_stamped(content: bytes, digest: str) -> bool:
    """Whether a model's file is the one of the digest in it."""
    found, mark = hashlib.sha256(), f'"sha256": "{digest}"'.encode()
    start = content.rfind(mark)
    if start < 0:
        return False
    first, last = start + len(mark) - 1 - len(digest), start + len(mark) - 1
    view = memoryview(content)
    for part in (view[:first], UNSTAMPED.encode(), view[last:]):
        found.update(part)
    return found.hexdigest() == digest
