"""Signals that ask a run to end, and cannot get lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

SECONDS = 0.5
ENDING = {
    signal.SIGINT: signal.default_int_handler,
    **{getattr(signal, name): signal.SIG_DFL for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)},
}
"""Signals that end a run, and their usual handlers. Slurm sends SIGTERM before it kills, and by --signal another."""
_installed: dict[str, int] = {}
"""The process that listens, and the signal that came last."""


class Ended(KeyboardInterrupt):
    """A signal asked the run to end; `args` holds its number."""

    @property
    def number(self) -> int:
        return int(self.args[0])


def exit_code(error: KeyboardInterrupt) -> int:
    """As shells tell of a signal: 130 after Ctrl-C, 143 after SIGTERM, 138 after SIGUSR1."""
    return 128 + (error.number if isinstance(error, Ended) else int(signal.SIGINT))


def signal_name(error: KeyboardInterrupt) -> str:
    return signal.Signals(exit_code(error) - 128).name


@contextmanager
def insistent_interrupt() -> Iterator[None]:
    """Within it, Ctrl-C, SIGTERM and SIGUSR1 raise `Ended` again every half second until `heard` is called.

    Python and some libraries drop exceptions raised inside destructors, callbacks and imports. A signal that is ignored
    or has another handler keeps it; nothing changes without timers (Windows), or outside the main thread.
    """
    is_main = threading.current_thread() is threading.main_thread()
    ours = [number for number, usual in ENDING.items() if signal.getsignal(number) is usual]
    if not (ours and hasattr(signal, "setitimer") and is_main):
        yield
        return
    _installed["process"] = os.getpid()
    before: dict[int, Any] = {number: signal.signal(number, _insist) for number in ours}
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, _insist)
    try:
        yield
    finally:
        try:
            _give_back(before)
        except Ended:  # which came in that moment
            _give_back(before)
            raise


def _give_back(before: Mapping[int, Any]) -> None:
    """The handlers from before; an alarm that is on its way is dropped, since theirs may be to end the process."""
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before.items():
        signal.signal(number, handler)


def heard() -> None:
    """To be called by whoever catches the interrupt, before cleaning up."""
    if hasattr(signal, "setitimer") and signal.getsignal(signal.SIGALRM) is _insist:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _insist(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _installed["process"]:  # a child that was forked: whoever made it ends it by a signal
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    if number != signal.SIGALRM:
        _installed["number"] = number
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    raise Ended(_installed["number"])
