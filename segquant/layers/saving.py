"""`save_pretrained` of models with quantized layers."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn

from torch import nn

from segquant.errors import QuantizationError
from segquant.layers.foreign import METHOD as METHOD
from segquant.layers.foreign import refuse_save_pretrained
from segquant.layers.layer import QuantLayer

Saver = Callable[..., Any]
"""Called with the class's own method, the model, and the method's arguments."""
_taught: list[type] = []
_refusals: weakref.WeakSet[Refusal] = weakref.WeakSet()


def refuse_save_pretrained_(model: nn.Module) -> nn.Module:
    """Let `save_pretrained` of a model with quantized layers raise before it writes: see `foreign`.

    Not of classes that were taught, see `teach_save_pretrained`.
    """
    for module in model.modules():
        if hasattr(type(module), METHOD) and _has_quantized(module) and not isinstance(module, tuple(_taught)):
            vars(module)[METHOD] = Refusal(module)
    return model


def teach_save_pretrained(kind: type, save: Saver) -> None:
    """Let this class's `save_pretrained` run `save` for models with quantized layers, made before or after."""
    own: Any = getattr(kind, METHOD)

    @wraps(own)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return save(own, self, *args, **kwargs) if _has_quantized(self) else own(self, *args, **kwargs)

    put_before(kind, method)
    for refusal in list(_refusals):
        refusal.end(kind)


def put_before(kind: type, method: Callable[..., Any]) -> None:
    """Give a class this `save_pretrained`, which wraps its own; again changes nothing."""
    if kind not in _taught:
        _taught.append(kind)
        setattr(kind, METHOD, method)


class Refusal:
    """In the place of a model's method; a copy of the model gets its own."""

    def __init__(self, owner: nn.Module) -> None:
        self._owner = weakref.ref(owner)  # a circle would keep the model in memory until the next collection
        self._kind = type(owner)
        _refusals.add(self)

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        ours = any(kind.__module__.partition(".")[0] == "diffusers" for kind in self._kind.__mro__)
        refuse_save_pretrained(self._kind.__name__, taught=ours)

    def end(self, kind: type) -> None:
        """Give a model of this class its method again."""
        owner = self._owner()
        if isinstance(owner, kind) and vars(owner).get(METHOD) is self:
            del vars(owner)[METHOD]

    def __deepcopy__(self, memo: dict[int, Any]) -> Refusal:
        copied: Any = memo.get(id(self._owner()), self._owner())
        return Refusal(copied)

    def __reduce__(self) -> tuple[Any, ...]:
        return Refusal, (self._owner(),)


def _has_quantized(model: nn.Module) -> bool:
    return any(isinstance(part, QuantLayer) for part in model.modules())


def refuse_stale(model: nn.Module) -> None:
    """Raise if a layer does not compute with what would be saved."""
    for name, module in model.named_modules():
        if isinstance(module, QuantLayer) and module.is_stale():
            raise QuantizationError(
                f"{name or 'the layer'} computes with an older weight than its buffers hold: one of them was written "
                "to where the layer cannot see it (numpy, DLPack, .data of what model.buffers() gives); write to the "
                "layer's own attribute, as in layer.weight_scale.mul_(2), or call layer.forget_packed(), before saving"
            )
