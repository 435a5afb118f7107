"""A logger that never ends a run."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from segquant_bench.pipelines.errors import one_line
from segquant_bench.pipelines.loggers.logger import FAILED, FINISHED, PREEMPTED, About, Logger
from segquant_bench.pipelines.runtime.events import StageListener
from segquant_bench.pipelines.runtime.finished import Finished
from segquant_bench.pipelines.runtime.interrupt import heard, signal_name

log = logging.getLogger(__name__)


class Guarded(StageListener):
    """Calls of a logger, one at a time; the first that fails is told in one line, and is the last."""

    def __init__(self, logger: Logger, name: str) -> None:
        self._logger, self._name, self._opened = logger, name, False
        self._lock, self._wants, self._fault = threading.Lock(), True, ""

    def ask(self, call: Callable[[Logger], object]) -> object:
        """What `call` gives for the logger; None where it failed, or the logger wants nothing more."""
        with self._lock:
            if not self._wants:
                return None
            try:
                return call(self._logger)
            except Exception as error:  # whatever a logger and its service raise
                self._fault, self._wants = one_line(error) or type(error).__name__, False
                log.debug("logging to %s", self._name, exc_info=error)
                log.warning(
                    "logger=%s fails (%s): nothing more is logged there, and results.json has all",
                    self._name, self._fault,
                )  # fmt: skip
                return None

    @property
    def is_open(self) -> bool:
        """Whether the logger wants to be told more."""
        return self._opened and self._wants

    def open(self, about: About) -> None:
        self._opened = bool(self.ask(lambda logger: logger.open(about)))
        self._wants = self._wants and self._opened

    def finish(self, state: str, why: str = "") -> None:
        """Also of a logger that failed, which is not left open; what it lacks is logged by the next run."""
        self.ask(lambda logger: logger.finish(state, why))
        if self._fault and self._opened:
            self._opened = False
            with suppress(Exception):  # told already
                self._logger.finish(FAILED, f"not all was logged: {self._fault}")
        self._wants = False

    def stage_began(self, name: str) -> None:
        self.ask(lambda logger: logger.stage_began(name))

    def stage_ended(self, finished: Finished) -> None:
        values = {
            "seconds": finished.seconds,
            "peak_memory_mb": finished.peak_memory_mb,
            "cached": float(finished.cached),
        }
        if finished.peak_device_memory_mb is not None:
            values["peak_device_memory_mb"] = finished.peak_device_memory_mb
        self.ask(lambda logger: logger.stage_ended(finished.name, values))


@contextmanager
def logged(logger: Logger, about: About) -> Iterator[Guarded]:
    """A run that is open within it, and ends as the work does."""
    shown = Guarded(logger, logger.config.name)
    shown.open(about)
    try:
        yield shown
    except KeyboardInterrupt as error:
        heard()  # the logger is told in a moment
        shown.finish(PREEMPTED, f"ended by {signal_name(error)}")
        raise
    except BaseException as error:
        shown.finish(FAILED, one_line(error) or type(error).__name__)
        raise
    shown.finish(FINISHED)
