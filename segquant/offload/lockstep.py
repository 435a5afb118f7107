"""Forward passes side by side, which wait for each other at gates.

Each is a thread, but one runs at a time, in fixed order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from segquant.errors import QuantizationError


class _AbandonedError(BaseException):
    """Another pass failed; no model code may catch this."""


class Walker(threading.Thread):
    """One forward pass `run`, without gradients."""

    def __init__(self, run: Callable[[], Any], index: int) -> None:
        super().__init__(name=f"segquant-pass-{index}", daemon=True)
        self.index = index
        self.gate: str | None = None
        self.arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self.error: BaseException | None = None
        self._run, self._output = run, None
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._abandoned = False

    def run(self) -> None:
        self._go.acquire()
        try:
            if not self._abandoned:
                with torch.no_grad():  # gradient mode does not cross threads
                    self._run()
        except _AbandonedError:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self.gate = None
            self._stopped.release()

    def advance(self, output: Any = None) -> None:
        """Go on to the next gate or the end; `output` is the current gate's result.

        Raises:
            BaseException: what the pass raised.
        """
        self._output = output
        del output
        if self.ident is None:
            self.start()
        self._go.release()
        self._stopped.acquire()
        if self.error is not None:
            raise self.error

    def wait(self, gate: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Called in the pass: stop at a gate and return its output."""
        self.gate, self.arguments = gate, (args, kwargs)
        del args, kwargs
        self._stopped.release()
        self._go.acquire()
        if self._abandoned:
            raise _AbandonedError
        output, self._output = self._output, None
        return output

    def abandon(self) -> None:
        """End the pass wherever it stands."""
        if self.ident is not None and self.is_alive():
            self._abandoned = True
            self._go.release()
            self.join()


@contextmanager
def gated(modules: Mapping[str, nn.Module]) -> Iterator[Callable[[str], None]]:
    """Inside, walkers stop at calls of `modules`. Yields a function that opens a gate for good."""
    before = {name: vars(module).get("forward") for name, module in modules.items()}

    def gate(name: str) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            walker = threading.current_thread()
            assert isinstance(walker, Walker), "only walkers run while modules are gated"
            return walker.wait(name, args, kwargs)

        return forward

    def open_gate(name: str) -> None:
        if name not in before:
            return
        original = before.pop(name)
        if original is None:
            vars(modules[name]).pop("forward", None)
        else:
            vars(modules[name])["forward"] = original

    for name, module in modules.items():
        vars(module)["forward"] = gate(name)
    try:
        yield open_gate
    finally:
        for name in list(before):
            open_gate(name)


def common_gate(walkers: Sequence[Walker]) -> str | None:
    """The gate where all passes stand; None if they are through."""
    gates = {walker.gate for walker in walkers}
    if len(gates) > 1:
        told = " and ".join(sorted("the end" if gate is None else gate for gate in gates)[:2])
        raise QuantizationError(
            f"calibration batches take different ways through the model: at one time they come to {told}; quantize "
            "without offloading, or on batches that go one way"
        )
    return gates.pop()
