"""Bars on terminals, whose counts reach whoever listens, also where no terminal shows them; for pipelines and eval."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tqdm as shown

from segquant_bench.texts import plain


@dataclass(frozen=True)
class Advance:
    """How far a loop is: `done` of `total` (0: nobody knows) `unit`s of `what`."""

    what: str
    done: int
    total: int
    unit: str


Listener = Callable[[Advance], None]
_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Within it, `listener` is told of every step of every loop, in the thread that makes the step."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def tell(advance: Advance) -> None:
    for listener in tuple(_listeners):
        listener(advance)


class Bar:
    """What moves in a loop. A bar that is hidden counts nothing, so that the count is kept here."""

    def __init__(self, inner: Any, what: str, total: int, unit: str) -> None:
        self._inner, self._last = inner, Advance(what, 0, total, unit)

    def update(self, count: int) -> None:
        last = self._last
        self._last = Advance(last.what, last.done + count, last.total, last.unit)
        self._inner.update(count)
        tell(self._last)


@contextmanager
def tqdm(*, total: int, desc: str, unit: str, **given: Any) -> Iterator[Bar]:
    """As tqdm's own, and told to listeners.

    Code that imports it means what code that imports tqdm's means, for the keys of stages: see `runtime.meaning`.
    """
    with shown.tqdm(total=total, desc=desc, unit=unit, **given) as inner:
        tell(Advance(desc, 0, total, unit))
        yield Bar(inner, desc, total, unit)


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[str, int, int], None]]:
    """A callback (what, done, total) that moves a bar, on terminals only, and tells listeners."""
    label = plain(label)
    with shown.tqdm(desc=label, disable=None, leave=False) as bar:

        def show(what: str, done: int, total: int) -> None:
            bar.set_description(f"{label}: {plain(what)}", refresh=False)
            bar.total, bar.n = total or None, done
            bar.refresh()
            tell(Advance(plain(what), done, total, ""))

        yield show


@contextmanager
def between_bars() -> Iterator[None]:
    """Lines that are written within it do not tear a bar."""
    with shown.tqdm.external_write_mode():
        yield
