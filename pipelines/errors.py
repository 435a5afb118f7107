"""The error a user sees, and the help it gives."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator

from segquant_bench.hints import nearest


class PipelineError(Exception):
    """Bad input or a bad environment: one sentence that says what was asked, what is there, what to do."""


RENAMED = {"encoders": "components", "calibration.sampler": "calibration.timesteps"}
"""Keys of the configuration that were called otherwise, with their names of today."""


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The sentence for a key that the configuration does not have; `known` are the names beside it."""
    for old, new in RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            return f"{old} is called {new} now; set {new}{key.removeprefix(old)}"
    return f"there is no key {key!r}; {nearest(key.rpartition('.')[2], known)}"


def one_of(key: str, value: str, known: Iterable[str]) -> None:
    """PipelineError unless a key's value is one of those known."""
    known = tuple(known)
    if value not in known:
        raise PipelineError(f"{key}={value!r} is not known; {nearest(value, known)}")


def at_least(key: str, value: float, least: float) -> None:
    """PipelineError for a key whose value is below its least."""
    if value < least:
        raise PipelineError(f"{key}={value} is out of range; it must be at least {least}")


def one_line(error: BaseException | str) -> str:
    """A message without line breaks, so that it stays one sentence on a terminal."""
    return " ".join(str(error).split())


def causes(error: BaseException) -> Iterator[BaseException]:
    """An exception, the one that it was raised from or while handling, and so on to the first."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def is_disk_full(error: BaseException) -> bool:
    """Whether an exception or its cause means that no space is left; safetensors only says so in its text."""
    return any(
        (isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT))
        or "No space left on device" in str(each)
        for each in causes(error)
    )
