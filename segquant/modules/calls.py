"""Run a model on a batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segquant.checks import described, listed, require
from segquant.errors import QuantizationError, first_line
from segquant.modules.state import normal, own_random

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total); total is 0 where it is not known."""
_FORMS = "a dict of the forward's keyword arguments, a tuple of its positional ones, or a tensor"
_TELLING = (TypeError, RuntimeError, ValueError, LookupError, AttributeError)
"""What a forward raises on arguments that do not fit."""


def call(model: nn.Module, batch: Any) -> Any:
    """Run the model on a dict of keyword arguments, a sequence, or one tensor; torch's generators are left alone.

    Raises:
        QuantizationError: no such batch, or the forward fails on it.
    """
    with own_random(model):
        return run(model, *arguments(batch))


def run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`call`, for a caller that cares for torch's generators."""
    try:
        return model(*args, **kwargs)
    except (QuantizationError, torch.OutOfMemoryError):
        raise
    except _TELLING as error:
        raise QuantizationError(_failure(model, args, kwargs, error)) from error


def arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args: tuple[Any, ...] = ()
    if isinstance(batch, Mapping) and all(isinstance(key, str) for key in batch):
        return (), {key: _normal(value) for key, value in batch.items()}
    if isinstance(batch, Tensor):
        args = (batch,)
    elif isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)):
        args = tuple(batch)
    else:
        raise QuantizationError(f"a calibration batch is a {type(batch).__name__}; yield {_FORMS}")
    return tuple(map(_normal, args)), {}


def batches_of(batches: Iterable[Any] | None) -> Iterable[Any]:
    """Calibration batches, as they are; none for None.

    Raises:
        QuantizationError: one batch instead of several, or no iterable.
    """
    if batches is None:
        return ()
    if isinstance(batches, (Tensor, Mapping)):
        what = "one tensor" if isinstance(batches, Tensor) else "one dictionary"
        raise QuantizationError(f"batches is {what}, which is a single batch; put it into a list: [batch]")
    if isinstance(batches, (str, bytes, nn.Module)) or not _can_be_read(batches):
        raise QuantizationError(f"batches is {described(batches)}; give a list of batches, each {_FORMS}")
    return batches


def named(layers: Any) -> list[str]:
    """Layer names as a list.

    Raises:
        QuantizationError: no list of strings.
    """
    names = listed("layers", layers, "a list of layer names")
    require(names, list[str], "a measurement", "layers", "a list of layer names")
    return names


def _can_be_read(batches: Any) -> bool:
    return isinstance(batches, Iterable) or hasattr(type(batches), "__getitem__")


def _normal(value: Any) -> Any:
    return normal(value) if isinstance(value, Tensor) else value


def _failure(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception) -> str:
    named = [*((f"argument {index}", value) for index, value in enumerate(args)), *kwargs.items()]
    told = ", ".join(f"{name} {_described(value)}" for name, value in named) or "no arguments"
    return (
        f"{type(model).__name__} cannot run on a calibration batch of {told}: {type(error).__name__}: "
        f"{first_line(error).rstrip('.')}; {_advice(model, [value for _, value in named])}"
    )


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"({type(value).__name__})"
    return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')} on {value.device}"


def _advice(model: nn.Module, values: Sequence[Any]) -> str:
    tensors = [value for value in values if isinstance(value, Tensor)]
    own = list(itertools.chain(model.parameters(), model.buffers()))
    for what, of in (("device", lambda tensor: str(tensor.device)), ("dtype", _float_dtype)):
        given, here = ({of(tensor) for tensor in some} - {""} for some in (tensors, own))
        if here == {"meta"}:
            return "the model's weights have no values: load them first"
        if given and here and not given & here:
            extra = " (autocast is off here)" if what == "dtype" else ""
            return f"the model is on {what} {', '.join(sorted(here))}: move one of the two there with .to(){extra}"
    return f"yield {_FORMS}"


def _float_dtype(tensor: Tensor) -> str:
    return str(tensor.dtype) if tensor.is_floating_point() else ""
