"""Convolutions as linears on patches: what makes every method of this library one for nn.Conv2d too.

A convolution of kernel kh × kw is a linear of in_channels · kh · kw features on the patches that its window slides
over (im2col), channel by channel, the kh · kw taps of a channel side by side. Two things tell it from any other
linear. All taps of a channel see the same values at different places, so what divides the *input* (smoothing) must be
the same for them (`tie_rule`), or no kernel could apply it before the window. And a cut between channels falls between
runs of taps. Grouped convolutions (depthwise ones for instance) are no such linear; they stay in floating point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as nnf


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
