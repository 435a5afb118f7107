"""A bound on what a configuration may build: one of a damaged or foreign file would take all memory, or for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules import module as hooks

from segquant.errors import QuantizationError

MODULES = 50
"""Modules that there may be for each tensor: containers, activations and such."""
SPARE = 1000
"""Modules and tensors that no file need know of."""


class TooLarge(QuantizationError):
    """More was being built than the files have weights for."""


@contextmanager
def bounded_building(tensors: int, elements: int | None = None) -> Iterator[None]:
    """Inside, this thread builds no module with more.

    Args:
        tensors: parameters that there may be, about.
        elements: of all parameters and buffers; None: any number.

    Raises:
        TooLarge: as soon as there are more, before they get values.
    """
    counts, thread = {"tensors": 0, "elements": 0, "modules": 0}, threading.get_ident()

    def count(kind: str, number: int, most: int | None) -> None:
        if threading.get_ident() != thread:
            return
        counts[kind] += number
        if most is not None and counts[kind] > most:
            raise TooLarge(f"its configuration asks for more than {most:,} {kind}, which its files do not have")

    def tensor(module: nn.Module, name: str, value: Any) -> None:
        if value is not None:
            count("tensors", 1, tensors + SPARE)
            count("elements", value.numel(), elements)

    def submodule(module: nn.Module, name: str, value: Any) -> None:
        count("modules", 1, (tensors + SPARE) * MODULES)

    handles = [
        hooks.register_module_parameter_registration_hook(tensor),
        hooks.register_module_buffer_registration_hook(tensor),
        hooks.register_module_module_registration_hook(submodule),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
