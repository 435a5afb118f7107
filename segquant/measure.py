"""Errors of a quantized model against the float one, on inputs that calibration did not see; and sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from segquant.errors import QuantizationError
from segquant.layers import QuantLinear
from segquant.observe import call


def layer_errors(float_model: nn.Module, quant_model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
    """||Y − Ŷ||_F / ||Y||_F of every quantized linear on the *float* model's input, over all rows.

    Returns:
        by module name; quantized linears that were never called are left out. Where Y = 0 throughout, the
        error is 0 if Ŷ is 0 too and inf if not.

    Raises:
        QuantizationError: the models do not match.
    """
    sums: dict[str, Tensor] = {}
    originals = dict(float_model.named_modules())
    handles = []
    for name, module in quant_model.named_modules():
        if not isinstance(module, QuantLinear):
            continue
        if not isinstance(originals.get(name), nn.Linear):
            raise QuantizationError(f"the float model has no linear {name!r}; give the model that was quantized")
        sums[name] = torch.zeros(2, dtype=torch.float64)
        handles.append(originals[name].register_forward_hook(_compare(module, sums[name]), with_kwargs=True))
    try:
        with torch.no_grad():
            for batch in batches:
                call(float_model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: _relative(*found.tolist()) for name, found in sums.items() if bool(found.any())}


def _compare(module: QuantLinear, sums: Tensor) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        exact = output.double()
        sums[0] += (module(*args, **kwargs).double() - exact).square().sum().cpu()
        sums[1] += exact.square().sum().cpu()

    return hook


def output_errors(float_model: nn.Module, quant_model: nn.Module, batches: Iterable[Any]) -> list[float]:
    """Relative error ||Y − Ŷ||_F / ||Y||_F of the whole model's output, one per batch."""
    return [_relative(*pair) for pair in _output_sums(float_model, quant_model, batches)]


def output_error(float_model: nn.Module, quant_model: nn.Module, batches: Iterable[Any]) -> float:
    """Relative error ||Y − Ŷ||_F / ||Y||_F of the whole model's output, over all batches together."""
    pairs = list(_output_sums(float_model, quant_model, batches))
    if not pairs:
        raise QuantizationError("there are no batches to measure the output error on; give at least one")
    return _relative(sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs))


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


def tensors_of(output: Any) -> list[Tensor]:
    """The float tensors in a model's output (tensor, tuple, dict, or a diffusers output), in order."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        return [tensor for entry in output for tensor in tensors_of(entry)]
    return []


def model_weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, shared ones once; quantized linears count what they store."""
    found = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in found.values())
