"""State dicts of quantized models in which the weights can be looked up."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from segquant.layers.layer import QuantLayer
from segquant.layers.saving import METHOD
from segquant.layers.weight import QuantWeight


class StateDict(OrderedDict[str, Tensor]):
    """What a model stores; `found["NAME.weight"]` of a quantized layer gives its read-only float weight all the same.

    Loaders of adapters ask so for shapes. Neither `in` nor a loop tells of these; copies and pickles are plain
    OrderedDicts.
    """

    _model: weakref.ref[nn.Module] | None = None

    @staticmethod
    def of(model: nn.Module, entries: dict[str, Tensor]) -> StateDict:
        """The same entries, torch's metadata included."""
        found = StateDict(entries)
        vars(found).update(vars(entries), _model=weakref.ref(model))
        return found

    def __missing__(self, name: str) -> Tensor:
        model = None if self._model is None else self._model()
        owner, _, key = name.rpartition(".")
        layer = None if model is None or key != "weight" else _part(model, owner)
        weight = getattr(layer, "weight", None)
        if isinstance(weight, QuantWeight):
            return weight
        raise KeyError(name)

    def __reduce__(self) -> Any:
        return (
            OrderedDict,
            (),
            {key: value for key, value in vars(self).items() if key != "_model"},
            None,
            iter(self.items()),
        )


def tell_weights_(model: nn.Module) -> nn.Module:
    """Let state dicts of models with quantized layers, and with `save_pretrained`, be `StateDict`s; returns the model.

    Such models are those of libraries that load adapters.
    """
    for module in model.modules():
        told = any(hook is _told for hook in module._state_dict_hooks.values())
        if not told and hasattr(type(module), METHOD) and any(isinstance(p, QuantLayer) for p in module.modules()):
            module._register_state_dict_hook(_told)  # the public one cannot replace what is returned
    return model


def _told(module: nn.Module, entries: dict[str, Tensor], prefix: str, _: Any) -> StateDict | None:
    return None if prefix else StateDict.of(module, entries)  # with one, they are part of a larger model's


def _part(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
