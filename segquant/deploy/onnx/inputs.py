"""A forward's example arguments as the inputs of a graph."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_flatten_with_path, tree_unflatten

from segquant.errors import QuantizationError, first_line

RETURN_DICT = "return_dict"


@dataclass
class Arguments:
    """Tensors by name, and what is built in.

    Attributes:
        parameters: names of the forward's parameters, in order.
        names: of the tensors, in the order of `tensors`.
        constants: what is no tensor, by name: part of the graph.
    """

    parameters: list[str]
    names: list[str]
    tensors: list[Tensor]
    constants: dict[str, Any]
    _leaves: list[Any]
    _spec: TreeSpec

    @staticmethod
    def of(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Arguments:
        """Of a call `model(*args, **kwargs)`; with "return_dict" it returns a tuple."""
        signature = inspect.signature(model.forward)
        try:
            bound = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise QuantizationError(
                f"{type(model).__name__}.forward does not take these example arguments: {first_line(error)}"
            ) from error
        given: dict[str, Any] = {}
        for name, value in bound.items():
            kind = signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                raise QuantizationError(f"{type(model).__name__}.forward takes *{name}: give arguments by name")
            given.update(value if kind is inspect.Parameter.VAR_KEYWORD else {name: value})
        if RETURN_DICT in signature.parameters:
            given[RETURN_DICT] = False
        pairs, _ = tree_flatten_with_path(given)
        leaves, spec = tree_flatten(given)
        names = [".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path) for path, _ in pairs]
        tensors = {name: leaf for name, leaf in zip(names, leaves, strict=True) if isinstance(leaf, Tensor)}
        constants = {name: leaf for name, leaf in zip(names, leaves, strict=True) if name not in tensors}
        if not tensors:
            raise QuantizationError("an export needs an example call with tensors; give args or kwargs of the forward")
        parameters = [name for name, each in signature.parameters.items() if each.kind is not each.VAR_KEYWORD]
        return Arguments(parameters, list(tensors), list(tensors.values()), constants, leaves, spec)

    def call(self, tensors: Sequence[Tensor]) -> dict[str, Any]:
        """Keyword arguments with other tensors in place of the example's."""
        following = iter(tensors)
        leaves = [next(following) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        found: dict[str, Any] = tree_unflatten(leaves, self._spec)
        return found


class Wrapped(nn.Module):
    """A model from tensors in a row to the tensors of its output."""

    def __init__(self, model: nn.Module, arguments: Arguments) -> None:
        super().__init__()
        self.model, self.arguments = model, arguments

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        found = self.model(**self.arguments.call(tensors))
        return tuple(leaf for leaf in tree_flatten(found)[0] if isinstance(leaf, Tensor))


def refuse_half(model: nn.Module, quantized: Mapping[str, nn.Module], arguments: Arguments) -> None:
    """QuantizationError unless all floating point outside quantized layers is float32."""
    inside = {id(tensor) for layer in quantized.values() for tensor in (*layer.parameters(), *layer.buffers())}
    held = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in held:
        if id(tensor) not in inside and tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise QuantizationError(
                f"{name} is {tensor.dtype}; exports compute in float32: call model.float() first (codes and scales of "
                "quantized layers stay as they are)"
            )
    for name, tensor in zip(arguments.names, arguments.tensors, strict=True):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise QuantizationError(f"the example's {name} is {tensor.dtype}; give float32")
