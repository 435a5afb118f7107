"""Cuts of one linear layer or convolution (SegLinear, arXiv 2507.14811)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from segquant.checks import check_fields, described
from segquant.errors import QuantizationError


@dataclass(frozen=True)
class Segments:
    """How the graph cuts one nn.Linear or nn.Conv2d.

    Attributes:
        output: channels of the output's pieces; None if uncut.
        input: likewise of the input; whole groups of a grouped convolution.
        activation: what feeds the input: "silu", "gelu", "mish", "hardswish", "swiglu", "geglu" or None.
        input_activations: the same per piece of `input`.
        skip: whether `input` is a concat that a convolution reads, as a UNet's skips are.

    Raises:
        QuantizationError: fewer than two pieces, an empty piece, or activations that do not match.
    """

    output: tuple[int, ...] | None = None
    input: tuple[int, ...] | None = None
    activation: str | None = None
    input_activations: tuple[str | None, ...] | None = None
    skip: bool = field(default=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        for side, sizes in (("output", self.output), ("input", self.input)):
            if sizes is not None:
                object.__setattr__(self, side, _checked_sizes(side, sizes))
        check_fields(self)
        if self.input_activations is not None:
            object.__setattr__(self, "input_activations", tuple(self.input_activations))
        if self.input is None and self.input_activations is not None:
            raise QuantizationError(
                "Segments has input_activations but no input cut: give the sizes of the pieces in `input`, "
                "or name the activation of the whole input in `activation`."
            )
        if self.input is not None and self.input_activations is None:
            object.__setattr__(self, "input_activations", (self.activation,) * len(self.input))
        if self.input is not None and len(self.input_activations or ()) != len(self.input):
            raise QuantizationError(
                f"Segments has {len(self.input)} input pieces but {len(self.input_activations or ())} "
                "input_activations: give one for each piece (None where there is no activation)."
            )


def _checked_sizes(side: str, sizes: Any) -> tuple[int, ...]:
    pieces: tuple[Any, ...] = tuple(sizes) if isinstance(sizes, (list, tuple)) else (sizes,)
    if len(pieces) < 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in pieces):
        raise QuantizationError(
            f"an {side} cut needs two or more pieces of at least one channel, got sizes {described(pieces)}: "
            f"pass {side}=None for a layer that is not cut."
        )
    return pieces


def column_segments(segments: Segments | None, taps: int) -> Segments | None:
    """Segments in patch columns instead of channels."""
    if segments is None or segments.input is None or taps == 1:
        return segments
    return replace(segments, input=tuple(size * taps for size in segments.input))
