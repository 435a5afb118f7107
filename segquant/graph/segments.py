"""Where a linear layer or convolution is cut: the plan of SegLinear (arXiv 2507.14811) for one layer."""

from __future__ import annotations

from dataclasses import dataclass, replace

from segquant.errors import QuantizationError


@dataclass(frozen=True)
class Segments:
    """How the graph cuts one layer: nn.Linear of weight [out_features, in_features], or nn.Conv2d.

    A convolution of weight [out_channels, in_channels / groups, height, width] counts out_channels and in_channels
    for the features; with groups, each input piece is whole groups, so that a row of the weight meets one piece.

    Attributes:
        output: sizes, in channels and in order, of the pieces that the output is cut into; their sum is
            out_features. None where the output is used whole.
        input: sizes, in channels and in order, of the pieces that the input is made of; their sum is
            in_features. None where the input is one piece.
        activation: name of the activation that the whole input comes out of: "silu", "gelu", "mish",
            "hardswish", or gated, "swiglu" and "geglu". None otherwise. (ReLU is not named: its output has
            no negative side that a scale of its own would help.)
        input_activations: the same for each piece of `input`, in order. None exactly where `input` is None.

    Raises:
        QuantizationError: a cut with fewer than two pieces, a piece without channels, or activations that
            do not match the pieces.
    """

    output: tuple[int, ...] | None = None
    input: tuple[int, ...] | None = None
    activation: str | None = None
    input_activations: tuple[str | None, ...] | None = None

    def __post_init__(self) -> None:
        for side, sizes in (("output", self.output), ("input", self.input)):
            if sizes is not None:
                object.__setattr__(self, side, _checked_sizes(side, sizes))
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


def _checked_sizes(side: str, sizes: tuple[int, ...]) -> tuple[int, ...]:
    sizes = tuple(sizes)
    if len(sizes) < 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes):
        raise QuantizationError(
            f"an {side} cut needs two or more pieces of at least one channel, got sizes {sizes}: "
            f"pass {side}=None for a layer that is not cut."
        )
    return sizes


def column_segments(segments: Segments | None, taps: int) -> Segments | None:
    """Segments in columns of the patches instead of channels."""
    if segments is None or segments.input is None or taps == 1:
        return segments
    return replace(segments, input=tuple(size * taps for size in segments.input))
