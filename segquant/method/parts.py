"""Parts of a method outside the slots: cuts, targets, the budget of `auto`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segquant.bounds import check_most
from segquant.checks import check_fields, described, listed
from segquant.errors import QuantizationError
from segquant.numerics.formats import QuantScheme, check_choice
from segquant.numerics.input_grid import NEGATIVES
from segquant.numerics.precisions import scheme_of

CONTROLS = ("graph", "skips", "random", "wrong")
SEARCH = "search"
COLUMNS = ("pieces", "fold", "whole")
LAYER = "layer"
SMOOTHING = (LAYER, "fold", "fold_or_layer")
NONE = "none"
METHODS, FORMATS = "methods", "formats"
DEPLOY: dict[str, dict[str, str]] = {
    "none": {"negative": "dual", "columns": "pieces", "smoothing": "layer"},
    "cpu": {"negative": "zero_point", "columns": "pieces", "smoothing": "layer"},
    "onnx": {"negative": "zero_point", "columns": "fold", "smoothing": "layer"},
    "tensorrt": {"negative": "shift", "columns": "fold", "smoothing": "layer"},
    "torchao": {"negative": "zero_point", "columns": "fold", "smoothing": "layer"},
    "comfy": {"negative": NONE, "columns": "whole", "smoothing": "fold"},
}
"""What an engine needs of `Cuts`, by the engine's name; chosen before solving, so that searches and GPTQ see it."""


def engine_cuts(engine: str, scheme: QuantScheme) -> dict[str, str]:
    """`DEPLOY`, where floats have no zero point: the kernel of "cpu" runs a scale per sign of them."""
    return {**DEPLOY[engine], "negative": "dual"} if engine == "cpu" and has_float_codes(scheme) else DEPLOY[engine]


def has_float_codes(scheme: QuantScheme) -> bool:
    """Whether inputs are quantized to floats, which have no zero point."""
    return scheme.input is not None and scheme.input.grid.kind not in ("int", "uint")


@dataclass(frozen=True)
class Cuts:
    """Where layers are cut.

    Args:
        seglinear: cut at the graph's segments.
        dualscale: a scale per sign after activations.
        control: "graph"; of its cuts the "skips" alone, inputs of convolutions that are concats, as in a UNet; or of
            Table 6 "random" places, "wrong" number of pieces.
        negative: how a scale per sign is held: "dual" (two products), "zero_point" (one grid over the range of both
            signs) or "shift" (a constant taken off static inputs, for engines whose grids are symmetric; dynamic ones
            have one scale); "none": one scale for both.
        columns: input pieces have scales of their own ("pieces", a product each), or these are folded into the
            smoothing ("fold", one product); "whole": one scale for all.
        smoothing: who divides a smoothed input: the "layer" itself, or the norm, AdaLN or linear before it, whose
            parameters take the vector in where the graph shows them ("fold"; other layers are not smoothed, or by
            themselves with "fold_or_layer"). Layers that share an input then share a vector.
    """

    seglinear: bool = False
    dualscale: bool = False
    control: str = "graph"
    negative: str = "dual"
    columns: str = "pieces"
    smoothing: str = "layer"

    def __post_init__(self) -> None:
        check_fields(self)
        check_choice("cuts", self.control, CONTROLS)
        check_choice("negative", self.negative, (*NEGATIVES, NONE))
        check_choice("columns", self.columns, COLUMNS)
        check_choice("smoothing", self.smoothing, SMOOTHING)

    @property
    def wants_graph(self) -> bool:
        return self.seglinear or self.dualscale


@dataclass(frozen=True)
class Targets:
    """Which layers are quantized.

    Args:
        skip: globs of module names left in floating point.
        overrides: (glob, flat fields) pairs; later ones win. Takes "precision" and "skip" too.
        on_uncalled: "error" or "skip", for layers never called.
        convolutions: quantize ungrouped nn.Conv2d too.
    """

    skip: tuple[str, ...] = ()
    overrides: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    on_uncalled: str = "error"
    convolutions: bool = False

    def __post_init__(self) -> None:
        check_choice("on_uncalled", self.on_uncalled, ("error", "skip"))
        if isinstance(self.skip, str):
            raise ValueError(f"skip is a list of globs, not the string {self.skip!r}")
        skip = listed("skip", self.skip, "a list of globs")
        object.__setattr__(self, "skip", tuple(map(_numbered, skip)))
        object.__setattr__(self, "overrides", pairs_of(self.overrides))
        check_fields(self, skip="a list of globs, for example ['proj_out', 'blocks.0.*']")


@dataclass(frozen=True)
class Budget:
    """What layers that choose for themselves may spend, relative to plain rounding.

    Args:
        bytes: of codes and scales.
        operations: multiply-accumulates per input row; of "formats" no matter.
        average_bits: most weight bits on average, if layers may take 2 to 8.
        over: what they choose among: "methods" (`auto`), or the method's own "formats", widths and groups.
    """

    bytes: float = 1.1
    operations: float = 1.5
    average_bits: float | None = None
    over: str = METHODS

    def __post_init__(self) -> None:
        check_fields(self)
        check_choice("budget over", self.over, (METHODS, FORMATS))
        if not self.bytes >= 1 or not self.operations >= 1:
            raise ValueError(
                f"budget bytes={self.bytes}, operations={self.operations}: both are multiples of plain "
                "rounding's cost and at least 1"
            )
        if self.average_bits is not None and not 2 <= self.average_bits <= 8:
            raise ValueError(f"budget average_bits must lie in [2, 8], not {self.average_bits}")
        check_most(self, "budget ")


def check_headroom(headroom: float | str) -> None:
    if isinstance(headroom, str):
        check_choice("headroom", headroom, (SEARCH,))
    elif not 0 <= headroom < math.inf:
        raise ValueError(f"headroom must be a share of at least 0 or 'search', not {headroom}")


def pairs_of(
    overrides: Mapping[str, Mapping[str, Any]] | Iterable[Sequence[Any]],
) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    pairs = listed("overrides", overrides.items() if isinstance(overrides, Mapping) else overrides)
    found = []
    for pair in pairs:
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise QuantizationError(
                f"an override is {described(pair)}; give a glob and the fields to change, as in {{'blocks.0.*': "
                "{'rank': 16}}"
            )
        pattern, changes = pair
        if not isinstance(changes, Mapping):
            told = f"override {described(pattern)} is {described(changes)}"
            raise ValueError(f"{told}; give the fields to change, as in {{rank: 16}}")
        values = {str(key): value for key, value in changes.items()}
        if "precision" in values:  # a scheme is saved as its fields
            precision = values["precision"]
            values["precision"] = scheme_of(precision) if isinstance(precision, Mapping) else precision
        found.append((_numbered(pattern), values))
    return tuple(found)


def _numbered(pattern: Any) -> Any:
    return str(pattern) if type(pattern) is int else pattern  # layers of a Sequential are named by numbers
