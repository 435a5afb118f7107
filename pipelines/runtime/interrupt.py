"""Ctrl-C that cannot get lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SECONDS = 0.5


@contextmanager
def insistent_interrupt() -> Iterator[None]:
    """Within it, Ctrl-C raises KeyboardInterrupt again every half second until `heard` is called.

    Python and some libraries drop exceptions raised inside destructors, callbacks and imports. Nothing changes where
    SIGINT is ignored or has another handler, without timers (Windows), or outside the main thread.
    """
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not (usual and hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()):
        yield
        return
    alarm = signal.signal(signal.SIGALRM, _insist)
    signal.signal(signal.SIGINT, _insist)
    try:
        yield
    finally:
        heard()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGALRM, alarm)


def heard() -> None:
    """To be called by whoever catches the interrupt, before cleaning up."""
    if hasattr(signal, "setitimer") and signal.getsignal(signal.SIGALRM) is _insist:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _insist(number: int, frame: FrameType | None) -> None:
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    raise KeyboardInterrupt
