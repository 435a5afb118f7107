"""Which modules are quantized, and each as a linear on rows: an nn.Linear, or an ungrouped nn.Conv2d on its patches."""

from __future__ import annotations

from torch import Tensor, nn

from segquant.modules.window import Window


def quantizable(model: nn.Module, convolutions: bool = True) -> dict[str, nn.Module]:
    """Every nn.Linear, and if wanted every ungrouped nn.Conv2d, by its first module name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or (convolutions and isinstance(module, nn.Conv2d) and module.groups == 1)
    }


def as_linear(module: nn.Module) -> nn.Linear:
    """The linear that a layer is: itself, or that on a convolution's patches, with the very same weights.

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
    """The window of a convolution, None of a linear."""
    return Window.of(module) if isinstance(module, nn.Conv2d) else None


def taps_of(module: nn.Module) -> int:
    """Columns of a layer's rows per input channel: 1 of a linear."""
    window = window_of(module)
    return 1 if window is None else window.taps


def width_of(module: nn.Module) -> int:
    """Features of a row of the layer's input."""
    assert isinstance(module.weight, Tensor)
    return module.weight[0].numel()


def input_rows(module: nn.Module, x: Tensor) -> Tensor:
    """Rows [..., in] of a layer's input: the input itself, or a convolution's patches."""
    window = window_of(module)
    return x if window is None else window.patches(x)
