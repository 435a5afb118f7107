"""Replace submodules by identity, and undo it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn


def swap_(model: nn.Module, replacements: Mapping[int, nn.Module]) -> None:
    """Replace submodules by identity (id of the old module), wherever they hang, aliases included."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and id(child) in replacements:
                parent._modules[name] = replacements[id(child)]


@contextmanager
def swapped(model: nn.Module, replacements: Mapping[int, nn.Module]) -> Iterator[nn.Module]:
    """The model with `replacements` in place, put back on leaving; a model that is itself replaced is not touched."""
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
    """Eval mode inside, every module's own mode restored on leaving."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
