"""`save_pretrained` of models with quantized layers."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any

from torch import nn

from segquant.errors import QuantizationError
from segquant.layers.layer import QuantLayer

METHOD = "save_pretrained"
Saver = Callable[..., Any]
"""Called with the model and the arguments of its `save_pretrained`."""
_SAVERS: list[tuple[type, Saver]] = []


def teach_save_pretrained(kind: type, save: Saver) -> None:
    """Let `save_pretrained` of this class's quantized models, made before or after, run `save` instead of raising."""
    _SAVERS[:] = [pair for pair in _SAVERS if pair[0] is not kind] + [(kind, save)]


def refuse_save_pretrained_(model: nn.Module) -> nn.Module:
    """Let `save_pretrained` of a model with quantized layers raise: its files would load with random weights.

    Unless somebody knows how to write them, see `teach_save_pretrained`.
    """
    for module in model.modules():
        if hasattr(type(module), METHOD) and any(isinstance(part, QuantLayer) for part in module.modules()):
            vars(module)[METHOD] = SavePretrained(module)
    return model


class SavePretrained:
    """In the place of a model's method; a copy of the model gets its own."""

    def __init__(self, owner: nn.Module) -> None:
        self._owner = weakref.ref(owner)  # a circle would keep the model in memory until the next collection

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        owner = self._owner()
        saver = next((save for kind, save in _SAVERS if isinstance(owner, kind)), None)
        if owner is None or saver is None:
            raise QuantizationError(_refusal(owner))
        return saver(owner, *args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        """That of the method: pipelines pass what it takes."""
        method = inspect.signature(getattr(type(self._owner()), METHOD))
        return method.replace(parameters=list(method.parameters.values())[1:])

    def __deepcopy__(self, memo: dict[int, Any]) -> SavePretrained:
        copied: Any = memo.get(id(self._owner()), self._owner())
        return SavePretrained(copied)

    def __reduce__(self) -> tuple[Any, ...]:
        return SavePretrained, (self._owner(),)


def _refusal(owner: nn.Module | None) -> str:
    ours = any(kind.__module__.partition(".")[0] == "diffusers" for kind in type(owner).__mro__)
    first = "import segquant.deploy.diffusers first, which teaches it, or " if ours else ""
    return (
        f"save_pretrained does not know the quantized layers of this {type(owner).__name__}: its files would load with "
        f"random weights; {first}save it by segquant.save_quantized(model, directory), and a pipeline's other parts by "
        "themselves"
    )
