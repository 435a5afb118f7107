"""Convolutions as linears on patches (im2col).

Features are in_channels · kh · kw, a channel's taps side by side, smoothed alike. Grouped convolutions stay float.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from segquant.checks import described
from segquant.errors import QuantizationError

MODES = ("zeros", "reflect", "replicate", "circular")
"""Of padding, as torch names them."""
LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Window:
    """How a convolution slides over its input; pairs are (height, width).

    Args:
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
        """The window of a convolution; its padding may be "same"."""
        left, right, top, bottom = convolution._reversed_padding_repeated_twice
        return cls(
            kernel=_pair(convolution.kernel_size),
            stride=_pair(convolution.stride),
            padding=(left, right, top, bottom),
            dilation=_pair(convolution.dilation),
            mode=convolution.padding_mode,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Window:
        """Inverse of `dataclasses.asdict`, from JSON.

        Raises:
            QuantizationError: a field is missing, unknown, or not a pair (padding: four) of integers; a mode that
                torch does not have.
        """
        try:
            given = dict(values)
            left, right, top, bottom = map(_whole, given.pop("padding"))
            mode = given.pop("mode")
            if mode not in MODES:
                raise ValueError(f"mode {described(mode)}")
            pairs = {key: _pair(value) for key, value in given.items()}
            if min(left, right, top, bottom) < 0 or any(min(pair) < 1 for pair in pairs.values()):
                raise ValueError("a number is too small")
            if max(left, right, top, bottom, *(max(pair) for pair in pairs.values())) > LARGEST:
                raise ValueError("a number is too large")
            return cls(padding=(left, right, top, bottom), mode=mode, **pairs)
        except (KeyError, TypeError, ValueError) as error:
            raise QuantizationError(
                f"{described(values)} does not describe a convolution's window ({error}); give kernel, stride and "
                f"dilation (two integers each), padding (four) and mode ({', '.join(MODES)})"
            ) from error

    @property
    def taps(self) -> int:
        """Patch columns per input channel."""
        return self.kernel[0] * self.kernel[1]

    def padded(self, x: Tensor) -> Tensor:
        """[batch, channels, h, w] with its padding; without a batch, as a batch of one."""
        if x.dim() == 3:
            x = x.unsqueeze(0)
        if any(self.padding):
            x = nnf.pad(x, self.padding, "constant" if self.mode == "zeros" else self.mode)
        return x

    def patches(self, x: Tensor) -> Tensor:
        """[batch, channels, h, w] -> [batch, positions, channels · taps]; without a batch, as a batch of one."""
        return nnf.unfold(self.padded(x), self.kernel, self.dilation, 0, self.stride).transpose(1, 2)

    def apply(self, product: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The convolution by `product` on patches: [batch, channels, h, w] -> [batch, out, h', w'], or unbatched.

        In the input's memory format, as torch's convolution.
        """
        rows = product(self.patches(x))
        output: Tensor = rows.transpose(1, 2).unflatten(2, self.size(x.shape[-2], x.shape[-1]))
        if not _is_channels_last(x):
            output = output.clone(memory_format=torch.contiguous_format)  # .contiguous() would keep a pixel's strides
        return output.squeeze(0) if x.dim() == 3 else output

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Of the output."""
        left, right, top, bottom = self.padding
        padded = (height + top + bottom, width + left + right)
        rows, columns = (
            (size - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, dilation, stride in zip(padded, self.kernel, self.dilation, self.stride, strict=True)
        )
        return rows, columns


def _is_channels_last(x: Tensor) -> bool:
    """Whether channels lie closest together, then columns, rows, batch, as torch decides it, gaps or not."""
    if x.dim() != 4 or not x.numel() or x.stride(1) == 0:
        return False
    least = 0
    for dim in (1, 3, 2, 0):
        step = x.stride(dim)
        if step < least or (dim == 0 and least == x.stride(1)):  # the latter: one pixel of one channel, both ways
            return False
        least = step * x.shape[dim] if x.shape[dim] > 1 else step
    return True


def _pair(values: Sequence[int]) -> tuple[int, int]:
    height, width = values
    return _whole(height), _whole(width)


def _whole(value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{described(value)} is no whole number")
    return value
