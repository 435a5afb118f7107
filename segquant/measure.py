"""Errors of a quantized model, and sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from segquant.errors import QuantizationError
from segquant.layers.linear import QuantLinear
from segquant.modules.calls import call
from segquant.modules.tensors import is_wrapper, plain, tensors_of

LAYERS = (nn.Linear, nn.Conv2d)
"""What a tool may have quantized."""


def layer_errors(
    float_model: nn.Module, quant_model: nn.Module, batches: Iterable[Any], layers: Iterable[str] | None = None
) -> dict[str, float]:
    """||Y − Ŷ||_F / ||Y||_F of every quantized layer on the *float* model's inputs, over all rows.

    Args:
        quant_model: by any tool.
        batches: arguments of the forward.
        layers: to compare; `quantized_layers` if None.

    Returns:
        by module name, if called. Where Y = 0: 0 if Ŷ = 0, else inf.

    Raises:
        QuantizationError: the models do not match.
    """
    with _comparing(float_model, quant_model, layers) as sums, torch.no_grad():
        for batch in batches:
            call(float_model, batch)
    return _layer_results(sums)


@dataclass(frozen=True)
class ModelErrors:
    """Relative errors ||Y − Ŷ||_F / ||Y||_F: by layer, of the output, and of the output per part of every batch."""

    layers: dict[str, float]
    output: float
    parts: list[float]


def model_errors(
    float_model: nn.Module,
    quant_model: nn.Module,
    batches: Iterable[Any],
    layers: Iterable[str] | None = None,
    *,
    parts: Sequence[int] | None = None,
) -> ModelErrors:
    """`layer_errors`, `output_error` and `output_errors` in one pass of each model; arguments as for `layer_errors`.

    Args:
        parts: per batch, into how many equal pieces the outputs' first axis is cut; 1 each if None.

    Raises:
        QuantizationError: the models do not match; no batches; rows do not fall into equal parts.
    """
    total, pieces = (0.0, 0.0), list[float]()
    with _comparing(float_model, quant_model, layers) as sums, torch.no_grad():
        for index, batch in enumerate(batches):
            count = 1 if parts is None else parts[index]
            exact, approximate = tensors_of(call(float_model, batch)), tensors_of(call(quant_model, batch))
            (whole,) = _part_sums(exact, approximate, 1)
            total = (total[0] + whole[0], total[1] + whole[1])
            pieces += [_relative(*piece) for piece in _part_sums(exact, approximate, count)]
    if not pieces:
        raise _no_batches()
    return ModelErrors(_layer_results(sums), _relative(*total), pieces)


def _part_sums(exact: Sequence[Tensor], approximate: Sequence[Tensor], count: int) -> Iterator[tuple[float, float]]:
    odd = [tuple(a.shape) for a in exact if count > 1 and (not a.dim() or a.shape[0] % count)]
    if odd:
        raise QuantizationError(
            f"an output of shape {odd[0]} cannot be cut into {count} parts along its first axis; "
            "measure batches of one part each"
        )
    pairs = [(_chunks(a, count), _chunks(b, count)) for a, b in zip(exact, approximate, strict=True)]
    for index in range(count):
        own = [(a[index], b[index]) for a, b in pairs]
        yield sum(float((a - b).square().sum()) for a, b in own), sum(float(a.square().sum()) for a, _ in own)


def _chunks(values: Tensor, count: int) -> Sequence[Tensor]:
    return values.double().chunk(count) if count > 1 else [values.double()]


@contextmanager
def _comparing(
    float_model: nn.Module, quant_model: nn.Module, layers: Iterable[str] | None
) -> Iterator[dict[str, Tensor]]:
    """Inside, float layers sum per call: squared error, squares, calls (float64 [3])."""
    names = list(quantized_layers(float_model, quant_model) if layers is None else layers)
    originals, replaced = dict(float_model.named_modules()), dict(quant_model.named_modules())
    sums = {name: torch.zeros(3, dtype=torch.float64) for name in names}
    handles = []
    try:
        for name in names:
            if not isinstance(originals.get(name), LAYERS) or name not in replaced:
                side = "quantized" if name in originals else "float"
                raise QuantizationError(
                    f"the {side} model has no linear or convolution {name!r}; give the model that was quantized"
                )
            hook = _compare(replaced[name], sums[name])
            handles.append(originals[name].register_forward_hook(hook, with_kwargs=True))
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def _layer_results(sums: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: _relative(*found[:2].tolist()) for name, found in sums.items() if found[2]}


def quantized_layers(float_model: nn.Module, quant_model: nn.Module) -> list[str]:
    """Names of layers that any tool quantized: QuantLinears, changed types, weights of a tensor subclass."""
    originals = dict(float_model.named_modules())
    return [
        name
        for name, module in quant_model.named_modules()
        if isinstance(module, QuantLinear)
        or (isinstance(originals.get(name), LAYERS) and _is_changed(originals[name], module))
    ]


def _is_changed(linear: nn.Module, module: nn.Module) -> bool:
    return type(module) is not type(linear) or (isinstance(module.weight, Tensor) and is_wrapper(module.weight))


def _compare(module: nn.Module, sums: Tensor) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        exact = output.double()
        sums[0] += (plain(module(*args, **kwargs)).double() - exact).square().sum().cpu()
        sums[1] += exact.square().sum().cpu()
        sums[2] += 1

    return hook


def output_errors(float_model: nn.Module, quant_model: nn.Module, batches: Iterable[Any]) -> list[float]:
    """||Y − Ŷ||_F / ||Y||_F of the output, per batch."""
    return [_relative(*pair) for pair in _output_sums(float_model, quant_model, batches)]


def output_error(float_model: nn.Module, quant_model: nn.Module, batches: Iterable[Any]) -> float:
    """||Y − Ŷ||_F / ||Y||_F of the output, over all batches."""
    pairs = list(_output_sums(float_model, quant_model, batches))
    if not pairs:
        raise _no_batches()
    return _relative(sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs))


def _no_batches() -> QuantizationError:
    return QuantizationError("there are no batches to measure the output error on; give at least one")


def _output_sums(
    float_model: nn.Module, quant_model: nn.Module, batches: Iterable[Any]
) -> Iterable[tuple[float, float]]:
    with torch.no_grad():
        for batch in batches:
            exact, approximate = tensors_of(call(float_model, batch)), tensors_of(call(quant_model, batch))
            difference = sum(
                float((a.double() - b.double()).square().sum()) for a, b in zip(exact, approximate, strict=True)
            )
            yield difference, sum(float(a.double().square().sum()) for a in exact)


def _relative(difference: float, total: float) -> float:
    if total == 0:
        return 0.0 if difference == 0 else float("inf")
    return float((difference / total) ** 0.5)
