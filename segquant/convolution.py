"""Convolutions as linears on patches: what makes every method of this library one for nn.Conv2d too.

A convolution of kernel kh × kw is a linear of in_channels · kh · kw features on the patches that its window slides
over (im2col), channel by channel, the kh · kw taps of a channel side by side. Two things tell it from any other
linear. All taps of a channel see the same values at different places, so what divides the *input* (smoothing) must be
the same for them (`tie_rule`), or no kernel could apply it before the window. And a cut between channels falls between
runs of taps. Grouped convolutions (depthwise ones for instance) are no such linear; they stay in floating point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as nnf

from segquant.formats import QuantScheme, QuantSpec
from segquant.optimizers.smooth import Rule
from segquant.segments import Segments
from segquant.spec import Method
from segquant.stats import HeldOut


@dataclass(frozen=True)
class Window:
    """How a convolution slides over its input.

    Args:
        kernel, stride, dilation: (height, width).
        padding: (left, right, top, bottom), in pixels.
        mode: of the padding: "zeros", "reflect", "replicate" or "circular".
    """

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    mode: str = "zeros"

    @classmethod
    def of(cls, convolution: nn.Conv2d) -> Window:
        """That of a convolution; its padding may be "same"."""
        height, width = convolution.kernel_size
        padding = tuple(convolution._reversed_padding_repeated_twice)
        return cls(
            (height, width), tuple(convolution.stride), padding, tuple(convolution.dilation), convolution.padding_mode
        )  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Window:
        """Inverse of `dataclasses.asdict` (JSON makes lists of tuples)."""
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})

    @property
    def taps(self) -> int:
        """Columns of the patches per input channel."""
        return self.kernel[0] * self.kernel[1]

    def patches(self, x: Tensor) -> Tensor:
        """Rows that the weight is multiplied with: [batch, channels, h, w] -> [batch, positions, channels · taps]."""
        if any(self.padding):
            x = nnf.pad(x, self.padding, "constant" if self.mode == "zeros" else self.mode)
        return nnf.unfold(x, self.kernel, self.dilation, 0, self.stride).transpose(1, 2)

    def apply(self, product: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The convolution of [batch, channels, h, w] whose product with patches is `product`: [batch, out, h', w']."""
        rows = product(self.patches(x))
        return rows.transpose(1, 2).unflatten(2, self._size(x.shape[-2], x.shape[-1]))

    def _size(self, height: int, width: int) -> tuple[int, int]:
        left, right, top, bottom = self.padding
        padded = (height + top + bottom, width + left + right)
        rows, columns = (
            (size - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, dilation, stride in zip(padded, self.kernel, self.dilation, self.stride, strict=True)
        )
        return rows, columns


def quantizable(model: nn.Module, convolutions: bool = True) -> dict[str, nn.Module]:
    """Every nn.Linear, and if wanted every ungrouped nn.Conv2d, by its first module name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        or (convolutions and isinstance(module, nn.Conv2d) and module.groups == 1)
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


def layer_method(method: Method, module: nn.Module) -> Method:
    """What of a method a layer can do.

    A convolution is not rotated: a Hadamard matrix over channels would have to be multiplied at every pixel. Where the
    group size does not divide its patches (the first one has few channels), it gets the next smaller one that does.
    """
    if not isinstance(module, nn.Conv2d):
        return method
    width, scheme = width_of(module), method.scheme
    fitted = QuantScheme(*(_fitted(spec, width) for spec in (scheme.weight, scheme.input)))
    return replace(method, rotate=False, scheme=fitted, overrides=())


def _fitted(spec: QuantSpec | None, width: int) -> QuantSpec | None:
    if spec is None or not spec.group_size or width % spec.group_size == 0:
        return spec
    return replace(spec, group_size=max(size for size in range(1, spec.group_size) if width % size == 0))


def column_segments(segments: Segments | None, taps: int) -> Segments | None:
    """Segments in columns of the patches instead of channels."""
    if segments is None or segments.input is None or taps == 1:
        return segments
    return replace(segments, input=tuple(size * taps for size in segments.input))


def tie(values: Tensor, taps: int) -> Tensor:
    """The largest of every channel's taps, for all of them: [in] -> [in]."""
    return values if taps == 1 else _peak(values, taps).repeat_interleave(taps)


def tie_rule(rule: Rule, taps: int) -> Rule:
    """A smoothing rule that sees channels, where columns are their taps, and gives all taps the same value."""
    if taps == 1:
        return rule

    def tied(split: HeldOut, weight_amax: Tensor, alpha: float) -> Tensor:
        mean = None if split.mean_abs is None else split.mean_abs.unflatten(0, (-1, taps)).mean(1)
        few = replace(
            split, positive=_peak(split.positive, taps), negative=_peak(split.negative, taps), mean_abs=mean
        )  # fmt: skip
        return rule(few, _peak(weight_amax, taps), alpha).repeat_interleave(taps)

    return tied


def _peak(values: Tensor, taps: int) -> Tensor:
    return values.unflatten(0, (-1, taps)).amax(1)
