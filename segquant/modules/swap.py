"""Replace submodules by identity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn


def swap_(model: nn.Module, replacements: Mapping[int, nn.Module]) -> None:
    """Replace submodules by id of the old module, aliases included."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and id(child) in replacements:
                parent._modules[name] = replacements[id(child)]


@contextmanager
def swapped(model: nn.Module, replacements: Mapping[int, nn.Module]) -> Iterator[nn.Module]:
    """The model with `replacements`, undone on leaving; if it is itself replaced, its replacement."""
    if id(model) in replacements:
        yield replacements[id(model)]
        return
    undo = {id(replacements[id(old)]): old for old in model.modules() if id(old) in replacements}
    swap_(model, replacements)
    try:
        yield model
    finally:
        swap_(model, undo)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; each module's own mode is restored."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
