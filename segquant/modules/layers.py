"""Which modules are quantized, each as a linear on rows."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from segquant.errors import QuantizationError
from segquant.modules.window import Window


class Replaced:
    """Mark of layers that are quantized already, though they are an nn.Linear or nn.Conv2d by type."""


def is_float_layer(module: object) -> bool:
    """Whether it is an nn.Linear or nn.Conv2d, not quantized yet."""
    return isinstance(module, (nn.Linear, nn.Conv2d)) and not isinstance(module, Replaced)


def quantizable(model: nn.Module, convolutions: bool = True) -> dict[str, nn.Module]:
    """Every nn.Linear, and ungrouped nn.Conv2d if wanted, by its first module name; without adapters."""
    adapters = _adapters(model)
    return {
        name: module
        for name, module in model.named_modules()
        if is_float_layer(module)
        and id(module) not in adapters
        and (isinstance(module, nn.Linear) or (convolutions and isinstance(module, nn.Conv2d) and module.groups == 1))
    }


def _adapters(model: nn.Module) -> set[int]:
    """Modules that peft put beside a layer, by id."""
    return {
        id(part)
        for module in model.modules()
        if has_adapter(module)
        for name, child in module.named_children()
        if name != "base_layer"
        for part in child.modules()
    }


def has_adapter(module: nn.Module) -> bool:
    """Whether peft put it around a layer."""
    return hasattr(module, "adapter_layer_names") and "base_layer" in module._modules


def as_linear(module: nn.Module) -> nn.Linear:
    """The layer, or a linear on a convolution's patches that shares its weights.

    Raises:
        TypeError: neither a linear nor an ungrouped convolution.
    """
    if isinstance(module, nn.Linear):
        return module
    if not isinstance(module, nn.Conv2d) or module.groups != 1:
        raise TypeError(f"a {type(module).__name__} is no linear on patches; give an nn.Linear or ungrouped nn.Conv2d")
    weight = module.weight.detach().flatten(1)
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=module.bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if module.bias is not None:
        linear.bias = nn.Parameter(module.bias.detach(), requires_grad=False)
    return linear.train(module.training)


def window_of(module: nn.Module) -> Window | None:
    """A convolution's window; None for a linear."""
    return Window.of(module) if isinstance(module, nn.Conv2d) else None


def taps_of(module: nn.Module) -> int:
    """Row columns per input channel; 1 for a linear."""
    window = window_of(module)
    return 1 if window is None else window.taps


def quantized_count(model: nn.Module) -> int:
    return sum(hasattr(module, "layout") and hasattr(module, "codes") for module in model.modules())


def refuse_lazy(module: nn.Module, name: str) -> None:
    if isinstance(module.weight, Tensor) and is_lazy(module.weight):
        raise QuantizationError(
            f"layer {name!r} has no weight yet, as it is a lazy one: call the model once on example inputs first"
        )


def width_of(module: nn.Module) -> int:
    assert isinstance(module.weight, Tensor)
    return math.prod(module.weight.shape[1:])  # also of a layer without outputs


def input_rows(module: nn.Module, x: Tensor) -> Tensor:
    """Rows [..., in]: the input, or a convolution's patches."""
    window = window_of(module)
    return x if window is None else window.patches(x)
