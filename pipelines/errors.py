"""Errors for the user."""

from __future__ import annotations

import errno
import math
import socket
import sys
from collections.abc import Iterable, Iterator

from filelock import Timeout

from segquant_bench.hints import nearest
from segquant_bench.texts import plain


class PipelineError(Exception):
    """Bad input or environment: one sentence that says what to do.

    `mendable` says what may be otherwise at another try (see the function of that name); "" of everything else.
    """

    mendable: str = ""


RENAMED = {"encoders": "components", "calibration.sampler": "calibration.timesteps"}
"""Keys of the configuration that were called otherwise, with their names of today."""


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The sentence for an unknown key; `known` are its neighbours."""
    for old, new in RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            return f"{old} is called {new} now; set {new}{key.removeprefix(old)}"
    return f"there is no key {key!r}; {nearest(key.rpartition('.')[2], known)}"


def one_of(key: str, value: str, known: Iterable[str]) -> None:
    known = tuple(known)
    if value not in known:
        raise PipelineError(f"{key}={value!r} is not known; {nearest(value, known)}")


def at_least(key: str, value: float, least: float, most: float = math.inf) -> None:
    """PipelineError for a value that is less, more than `most`, infinite or no number."""
    if not (least <= value < math.inf and value <= most):
        wanted = f"at least {least:.12g}" if most == math.inf else f"from {least:.12g} to {most:.12g}"
        raise PipelineError(f"{key}={value} is out of range; it must be {wanted}")


def one_line(error: BaseException | str) -> str:
    """A message on one line, without characters that a terminal obeys."""
    return plain(" ".join(str(error).split()))


def causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and its causes, down to the first."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)


OF_RUNS = "hydra.run.dir=DIRECTORY (of a sweep: hydra.sweep.dir) and cache=DIRECTORY, or a shorter name=NAME"
"""What says where a run writes."""


def unwritable(error: BaseException, places: str = OF_RUNS) -> str | None:
    """The sentence for a place that cannot be written to, with the settings that choose another; else None."""
    if not isinstance(error, OSError) or not error.filename:
        return None
    if error.errno not in _UNWRITABLE and not (error.errno == errno.ENOENT and _is_making_folder(error)):
        return None
    return f"{one_line(str(error.filename))} cannot be written ({error.strerror}); choose another place with {places}"


def _is_making_folder(error: OSError) -> bool:
    """Whether it comes from `mkdir`: file systems like /proc answer as if the folder above were not there."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and frame.tb_frame.f_code.co_name == "mkdir"


def is_disk_full(error: BaseException) -> bool:
    """Whether no space is left; safetensors only says so in its text."""
    return any(
        (isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT))
        or "No space left on device" in str(each)
        for each in causes(error)
    )


_NO_ROOM = ("can't allocate memory", "not enough memory", "out of memory")
"""What RuntimeErrors of torch's allocators say; on a device some have a class of their own."""


def is_memory(error: BaseException) -> bool:
    """Whether this error, its causes apart, is lack of memory."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_ROOM)


_PASSING = (
    errno.EIO, errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET,
    errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED,
)  # fmt: skip
"""Errors of disks, shares and networks that may be gone a while later."""
_BUSY = (408, 429, 500, 502, 503, 504)
"""What servers answer then."""


def mendable(error: BaseException) -> str:
    """What another try may find otherwise: "memory", "disk", or "disk or network"; "" of all else.

    Refusals of a configuration, files that are missing or damaged, and faults of the program are none of these.
    """
    found = list(causes(error))
    if any(is_memory(each) for each in found):
        return "memory"
    if is_disk_full(error):
        return "disk"
    return "disk or network" if any(_passes(each) for each in found) else ""


def _passes(error: BaseException) -> bool:
    if isinstance(error, Timeout):  # another run holds a lock
        return False
    if isinstance(error, socket.gaierror) or (isinstance(error, OSError) and error.errno in _PASSING):
        return True
    return getattr(getattr(error, "response", None), "status_code", None) in _BUSY
