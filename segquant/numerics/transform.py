"""What happens to a branch's input before it is quantized, and the same to its weight and Gram matrix.

X T for the input and W T⁻ᵀ for the weight with T = diag(1/s) · Q, Q orthogonal: exact before rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from segquant.numerics.hadamard import rotate


@dataclass(frozen=True)
class Transform:
    """Smoothing by s, then rotation.

    Args:
        smooth: s, positive [in], or None.
        signs: ±1 [in] of the randomized Hadamard rotation, or None.
        blocks: sizes of its blocks.
    """

    smooth: Tensor | None = None
    signs: Tensor | None = None
    blocks: tuple[int, ...] = ()

    def rows(self, x: Tensor) -> Tensor:
        """Inputs [..., in]."""
        return self._rotate(x if self.smooth is None else x / self.smooth)

    def weight(self, weight: Tensor) -> Tensor:
        """A weight [out, in]."""
        return self._rotate(weight if self.smooth is None else weight * self.smooth)

    def gram(self, gram: Tensor) -> Tensor:
        """A Gram matrix [in, in] of inputs."""
        if self.smooth is not None:
            gram = gram / self.smooth / self.smooth[:, None]
        return self._rotate(self._rotate(gram).T) if self.signs is not None else gram

    def _rotate(self, x: Tensor) -> Tensor:
        return x if self.signs is None else rotate(x, self.blocks, self.signs)
