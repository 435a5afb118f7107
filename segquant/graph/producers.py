"""What makes an input that layers read, where a factor per channel of it can go into parameters."""

from __future__ import annotations

from dataclasses import dataclass

from segquant.checks import check_fields

KINDS = ("norm", "adaln", "linear")


@dataclass(frozen=True)
class Rows:
    """Rows [start, stop) of a parameter, `width` numbers each, one per channel of the input.

    An input divided by s takes (p + plus) / s − plus in the place of p.

    Attributes:
        parameter: its name in the model.
        plus: what the graph adds to it, the 1 of x · (1 + scale).
    """

    parameter: str
    start: int
    stop: int
    width: int = 1
    plus: float = 0.0


@dataclass(frozen=True)
class Producer:
    """Parameters that the channels of one input are proportional to.

    Attributes:
        kind: "norm" (affine weight and bias), "adaln" (scale and shift from a linear) or "linear" (its output, perhaps
            times a gate).
        rows: all that must change together.
        readers: names of all layers that read the input, and nothing else does.
    """

    kind: str
    rows: tuple[Rows, ...]
    readers: tuple[str, ...]

    def __post_init__(self) -> None:
        check_fields(self)
