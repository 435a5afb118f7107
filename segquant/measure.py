"""Errors of a quantized model, and sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from segquant.checks import checked, described
from segquant.errors import QuantizationError
from segquant.keep import Keeper
from segquant.layers.layer import QuantLayer
from segquant.layers.linear import QuantLinear
from segquant.modules.calls import batches_of, call, named
from segquant.modules.layers import is_float_layer
from segquant.modules.state import own_state
from segquant.modules.tensors import is_wrapper, plain, tensors_of
from segquant.modules.wrappers import unwrapped

_ERRORS = "errors"


@checked()
@own_state()
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
    with unwrapped(float_model) as exact, unwrapped(quant_model) as other, _comparing(exact, other, layers) as sums:
        for batch in batches_of(batches):
            call(exact, batch)
    return _layer_results(sums)


@dataclass(frozen=True)
class ModelErrors:
    """Relative errors ||Y − Ŷ||_F / ||Y||_F: by layer, of the output, and of the output per part of every batch.

    `energies` are ||Y||_F² of the parts: the output's squared error is their mean by it. `layer_parts` are, by layer
    and part, ||Y − Ŷ||_F² and ||Y||_F² of the layer's output: zeros of a layer whose first axis does not fall into the
    batch's parts; empty if no parts were asked for.
    """

    layers: dict[str, float]
    output: float
    parts: list[float]
    energies: list[float]
    layer_parts: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


@dataclass
class _Place:
    """Which parts the layers' outputs are of: `count` from `first` on; of no parts if 0."""

    first: int = 0
    count: int = 0


@checked()
@own_state()
def model_errors(
    float_model: nn.Module,
    quant_model: nn.Module,
    batches: Iterable[Any],
    layers: Iterable[str] | None = None,
    *,
    parts: Sequence[int] | None = None,
    keep: Keeper | None = None,
) -> ModelErrors:
    """`layer_errors`, `output_error` and `output_errors` in one pass of each model; arguments as for `layer_errors`.

    Args:
        parts: per batch, how many equal parts the outputs' first axis is cut into; 1 each if None.
        keep: takes the sums so far; the same call after a kill goes on behind them.

    Raises:
        QuantizationError: the models do not match; no batches; rows do not fall into equal parts.
    """
    place = _Place()
    rows = 0 if parts is None else sum(max(count, 0) for count in parts)
    with (
        unwrapped(float_model) as first,
        unwrapped(quant_model) as second,
        _comparing(first, second, layers, place, rows) as sums,
    ):
        done, total, pieces, energies = _kept_errors(keep, sums)
        for index, batch in enumerate(batches_of(batches)):
            if index < done:
                continue
            count = 1 if parts is None else _count(parts, index)
            place.first, place.count = len(pieces), 0 if parts is None else count
            exact, approximate = call(first, batch), call(second, batch)
            whole = _squares(tensors_of(exact), tensors_of(approximate))
            total = (total[0] + whole[0], total[1] + whole[1])
            pairs = zip(_parts(exact, count), _parts(approximate, count), strict=True)
            squares = [_squares(*pair) for pair in pairs]
            pieces += [_relative(*each) for each in squares]
            energies += [energy for _, energy in squares]
            if keep is not None:
                keep.put(_ERRORS, sums, [index + 1, total, pieces, energies])
    if not pieces:
        raise _no_batches()
    return ModelErrors(_layer_results(sums), _relative(*total), pieces, energies, _part_results(sums))


def _kept_errors(
    keep: Keeper | None, sums: Mapping[str, Tensor]
) -> tuple[int, tuple[float, float], list[float], list[float]]:
    """Batches that a run before had measured, and what it had summed, which goes into `sums`."""
    piece = None if keep is None else keep.get(_ERRORS)
    if piece is None or {name: found.shape for name, found in piece.tensors.items()} != {
        name: found.shape for name, found in sums.items()
    }:
        return 0, (0.0, 0.0), [], []
    for name, found in piece.tensors.items():
        sums[name].copy_(found)
    done, total, pieces, energies = piece.about
    return done, (total[0], total[1]), pieces, energies


def _count(parts: Sequence[int], index: int) -> int:
    if index >= len(parts) or parts[index] < 1:
        raise QuantizationError(f"parts={described(parts)} is to have one number, at least 1, for every batch")
    return parts[index]


def _squares(exact: Sequence[Tensor], approximate: Sequence[Tensor]) -> tuple[float, float]:
    if any(tensor.device.type == "meta" for tensor in (*exact, *approximate)):
        raise QuantizationError("the model's output has no values (it is on meta); load its weights first")
    if [tensor.shape for tensor in exact] != [tensor.shape for tensor in approximate]:
        raise QuantizationError(
            f"the float model's outputs have shapes {_shapes(exact)} and the quantized one's {_shapes(approximate)}; "
            "give the model that was quantized"
        )
    pairs = [(a.double(), b.double()) for a, b in zip(exact, approximate, strict=True)]
    return sum(float((a - b).square().sum()) for a, b in pairs), sum(float(a.square().sum()) for a, _ in pairs)


def _shapes(tensors: Sequence[Tensor]) -> str:
    return str([list(tensor.shape) for tensor in tensors])


def _parts(output: Any, count: int) -> list[list[Tensor]]:
    """The tensors of each of `count` parts of a model's output."""
    if count == 1:
        return [tensors_of(output)]
    if isinstance(output, list) and len(output) == count:
        return [tensors_of(entry) for entry in output]
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        by_entry = [_parts(entry, count) for entry in output]
        return [[tensor for parts in by_entry for tensor in parts[index]] for index in range(count)]
    chunks = [_chunks(tensor, count) for tensor in tensors_of(output)]
    return [[pieces[index] for pieces in chunks] for index in range(count)]


def _chunks(values: Tensor, count: int) -> Sequence[Tensor]:
    if not values.dim() or values.shape[0] % count:
        raise QuantizationError(
            f"an output of shape {tuple(values.shape)} cannot be cut into {count} parts along its first axis; "
            "measure batches of one part each"
        )
    return values.chunk(count)


@contextmanager
def _comparing(
    float_model: nn.Module,
    quant_model: nn.Module,
    layers: Iterable[str] | None,
    place: _Place | None = None,
    parts: int = 0,
) -> Iterator[dict[str, Tensor]]:
    """Inside, float layers sum per call: squared error, squares, calls, and the first two of each part.

    Float64 [3 + 2 · parts]; `place` says of which parts a call is.
    """
    place = place or _Place()
    names = quantized_layers(float_model, quant_model) if layers is None else named(layers)
    originals, replaced = dict(float_model.named_modules()), dict(quant_model.named_modules())
    sums = {name: torch.zeros(3 + 2 * parts, dtype=torch.float64, device="cpu") for name in names}
    handles = []
    try:
        for name in names:
            if not is_float_layer(originals.get(name)) or name not in replaced:
                side = "quantized" if name in originals else "float"
                raise QuantizationError(
                    f"the {side} model has no linear or convolution {name!r}; give the model that was quantized"
                )
            hook = _compare(replaced[name], sums[name], place)
            handles.append(originals[name].register_forward_hook(hook, with_kwargs=True))
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def _layer_results(sums: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: _relative(*found[:2].tolist()) for name, found in sums.items() if found[2]}


def _part_results(sums: Mapping[str, Tensor]) -> dict[str, list[tuple[float, float]]]:
    called = {name: found[3:].reshape(-1, 2).tolist() for name, found in sums.items() if found[2] and len(found) > 3}
    return {name: [(error, energy) for error, energy in rows] for name, rows in called.items()}


def quantized_layers(float_model: nn.Module, quant_model: nn.Module) -> list[str]:
    """Names of layers that any tool quantized: QuantLinears, changed types, weights of a tensor subclass."""
    originals = dict(float_model.named_modules())
    return [
        name
        for name, module in quant_model.named_modules()
        if isinstance(module, QuantLinear)
        or (is_float_layer(originals.get(name)) and _is_changed(originals[name], module))
    ]


def _is_changed(linear: nn.Module, module: nn.Module) -> bool:
    return type(module) is not type(linear) or (isinstance(module.weight, Tensor) and is_wrapper(module.weight))


def _compare(module: nn.Module, sums: Tensor, place: _Place) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        exact = output.double()
        run = module.as_float if isinstance(module, QuantLayer) else module
        found = plain(run(*args, **kwargs))
        errors, squares = (found.double() - exact).square(), exact.square()
        sums[0] += errors.sum().cpu()
        sums[1] += squares.sum().cpu()
        sums[2] += 1
        if place.count and exact.dim() and exact.shape[0] % place.count == 0:
            by_part = torch.stack([each.reshape(place.count, -1).sum(1) for each in (errors, squares)], 1)
            sums[3:].view(-1, 2)[place.first : place.first + place.count] += by_part.cpu()

    return hook


@checked()
@own_state()
def output_errors(float_model: nn.Module, quant_model: nn.Module, batches: Iterable[Any]) -> list[float]:
    """||Y − Ŷ||_F / ||Y||_F of the output, per batch."""
    return [_relative(*pair) for pair in _output_sums(float_model, quant_model, batches)]


@checked()
@own_state()
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
        for batch in batches_of(batches):
            yield _squares(tensors_of(call(float_model, batch)), tensors_of(call(quant_model, batch)))


def _relative(difference: float, total: float) -> float:
    if total == 0:
        return 0.0 if difference == 0 else float("inf")
    return float((difference / total) ** 0.5)
