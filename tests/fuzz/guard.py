"""What a reader may not do: take long, take much memory, leave its folder, reach the network, start a process."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

SECONDS = 20
"""Of the processor, what one reading may take; the slowest honest ones take a second."""
WAITING = 10
"""How much longer it may take by the clock: machines are busy."""
MEMORY = 6 << 30
"""Bytes of address space that a reading may add."""
FORBIDDEN = ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn")
IN_OPEN = 0x20
IN_NONBLOCK = 0o4000


class Forbidden(BaseException):
    """What was done; no `except Exception` of a reader hides it."""


_state: dict[str, Any] = {"told": None, "hooked": False}


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    told = _state["told"]
    if told is not None and event in FORBIDDEN and not _is_harmless(event, arguments):
        told.append(f"{event} {str(arguments)[:200]}")


def _is_harmless(event: str, arguments: tuple[Any, ...]) -> bool:
    # torch asks for the compiler and the processor's name when parts of it are first imported
    return event == "subprocess.Popen" and Path(str(arguments[0])).name in ("lscpu", "uname", "ldconfig", "gcc", "cc")


@contextmanager
def guarded(outside: Path) -> Iterator[list[str]]:
    """A list of what was done that may not be; raises Forbidden when the time is over.

    Args:
        outside: a folder whose files may not be opened, by whatever code (the kernel tells).
    """
    if not _state["hooked"]:
        sys.addaudithook(_hook)  # for the whole process: it cannot be taken away, so it is switched
        _state["hooked"] = True
    told: list[str] = []
    with ExitStack() as stack:  # which undoes all, whatever is raised meanwhile
        watch = _watch(outside)
        stack.callback(_look, watch, outside, told)
        _state["told"] = told
        stack.callback(_state.update, told=None)
        limits = resource.getrlimit(resource.RLIMIT_AS)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, limits[1]))
        stack.callback(resource.setrlimit, resource.RLIMIT_AS, limits)
        stack.callback(_stop, signal.signal(signal.SIGALRM, _too_long))
        signal.setitimer(signal.ITIMER_REAL, SECONDS * WAITING)
        began = time.process_time()
        yield told
        if time.process_time() - began > SECONDS:
            _too_long()


def _stop(before: Any) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_IGN)  # drops one that is on its way: by default it would end the process
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def _too_long(*_: object) -> None:
    raise Forbidden(f"more than {SECONDS} s")


def _watch(folder: Path) -> int:
    library = ctypes.CDLL(None, use_errno=True)
    watch: int = library.inotify_init1(IN_NONBLOCK)
    if watch < 0 or library.inotify_add_watch(watch, os.fsencode(folder), IN_OPEN) < 0:
        raise OSError(ctypes.get_errno(), "the kernel watches no folder")
    return watch


def _look(watch: int, outside: Path, told: list[str]) -> None:
    try:
        if os.read(watch, 4096):
            told.append(f"a file in {outside} was opened")
    except BlockingIOError:
        pass
    finally:
        os.close(watch)
