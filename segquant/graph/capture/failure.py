"""Explain why a model did not run: which argument, which layer, why."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.nn.parameter import is_lazy

from segquant.errors import QuantizationError, first_line
from segquant.graph.capture.copies import example_copy, fake_copy, tensors_in, unreal, with_values
from segquant.graph.capture.origins import Failure, Origins, ValuesNeeded


def check_shapes(model: nn.Module) -> None:
    """QuantizationError for a parameter or buffer without a shape."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise QuantizationError(
                f"{name} of {type(model).__name__} has no shape yet, as its module is a lazy one: call the model once "
                "on example inputs first."
            )


def check_arguments(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """QuantizationError for an unknown or missing argument."""
    signature = inspect.signature(model.forward)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        wanted = [
            name
            for name, parameter in signature.parameters.items()
            if parameter.default is inspect.Parameter.empty
            and parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        ]
        raise QuantizationError(
            f"{type(model).__name__} cannot be called with {_listed(args, kwargs)}: {error}. "
            f"Its forward needs ({', '.join(wanted) or 'nothing'})."
        ) from error


def failure_message(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], device: torch.device, error: Exception
) -> str:
    """Why the forward failed, with the arguments that the operator depends on."""
    head = f"the graph of {type(model).__name__} called with {_listed(args, kwargs)} could not be read"
    if isinstance(error, (ValuesNeeded, DataDependentOutputException, DynamicOutputShapeException)):
        hollow = [name for name, value in _named(args, kwargs) if any(map(unreal, tensors_in(value)))]
        return (
            f"{head}: its control flow depends on values, and {', '.join(hollow) or 'the weights'} have none "
            f"({first_line(error)}). Pass example inputs with values, or `segments` by hand."
        )
    where, guilty = _blame(model, args, kwargs, device, error)
    return (
        f"{head}: {type(error).__name__}{where}: {first_line(error).rstrip('.')}. "
        f"Pass {f'another {guilty}' if guilty else 'example inputs'} that its forward accepts."
    )


def _blame(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], device: torch.device, error: Exception
) -> tuple[str, str]:
    """Where a run on fake weights fails, and the arguments there."""
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    given = example_copy(args, kwargs, with_values(fake_mode, device))
    origins, inside = Origins(), _Inside(fake_copy(model, fake_mode, device, values=True))
    for label, value in _named(*given):
        for tensor in tensors_in(value):
            origins.name(tensor, label)
    try:
        with torch.no_grad(), origins:
            inside.model(*given[0], **given[1])
    except Exception as again:
        if type(again) is not type(error):
            return "", ""
        failure = origins.notes.failure
        if failure is not None and failure.error in (again, again.__cause__, again.__context__):
            names, what = failure.names, _operator(failure)
        else:
            names, what = origins.names(inside.received()), ""
        place = f" in {inside.name()}" if inside.name() else ""
        return f"{place}{what}", " or ".join(_described(name, args, kwargs) for name in sorted(names))
    return "", ""


def _operator(failure: Failure) -> str:
    shapes = " and ".join(str(list(shape)) for shape in failure.shapes)
    return f", {failure.operator} of {shapes}" if shapes else f", {failure.operator}"


class _Inside:
    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._stack: list[tuple[str, list[Tensor]]] = []
        for name, module in model.named_modules():
            module.register_forward_pre_hook(self._entered(name), with_kwargs=True)
            module.register_forward_hook(lambda *_: self._left())

    def name(self) -> str:
        return self._stack[-1][0] if self._stack else ""

    def received(self) -> list[Tensor]:
        return self._stack[-1][1] if self._stack else []

    def _entered(self, name: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            self._stack.append((name, list(tensors_in((args, kwargs)))))

        return hook

    def _left(self) -> None:
        self._stack.pop()


def _named(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [*((f"argument {i}", value) for i, value in enumerate(args)), *kwargs.items()]


def _described(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    value = dict(_named(args, kwargs)).get(name)
    return f"{name} {list(value.shape)}" if isinstance(value, Tensor) else name


def _listed(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    return f"({', '.join(_described(name, args, kwargs) for name, _ in _named(args, kwargs)) or 'no arguments'})"
