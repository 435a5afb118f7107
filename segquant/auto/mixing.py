"""Mixed formats: every layer's width and group size, by what its error does to the output."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from segquant.auto.budget import Layer
from segquant.auto.candidates import PLAIN, WIDTHS, Change
from segquant.auto.judge import Judge
from segquant.errors import QuantizationError
from segquant.graph.segments import Segments
from segquant.method.spec import Method
from segquant.modules.layers import as_linear, window_of
from segquant.numerics.formats import QuantScheme, QuantSpec
from segquant.numerics.precisions import PRECISIONS, precision_name
from segquant.numerics.scales import K_BITS
from segquant.observers.stats import InputStats
from segquant.optimizers.svdquant import SvdQuant

GROUPS = {"int": (32, 64, 128), "uint": (32, 64, 128), "fp": (16, 32, 64), "nf": (32, 64, 128)}
"""Group sizes that may mix, by the kind of the base's dtype; only where the base has groups."""
BLOCKS = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0")
"""GGUF's formats that may mix, as its own files of several do."""
_BLOCK_SCALES = {*K_BITS, "q0", "q1"}


def formats_of(scheme: QuantScheme, in_features: int) -> list[QuantScheme]:
    """The scheme, and those with weights of other widths and groups of the same kind; inputs stay as they are.

    What shares a scale stays too: a format per tensor or channel has no groups beside it, which its kernels lack.
    """
    weight = scheme.weight
    assert weight is not None
    found = [scheme, *(replace(scheme, weight=other) for other in _weights(weight))]
    return [each for each in dict.fromkeys(found) if each == scheme or _divides(each, in_features)]


def _weights(weight: QuantSpec) -> Iterable[QuantSpec]:
    if weight.scale_dtype in _BLOCK_SCALES or weight == PRECISIONS["q8_0"].weight:
        return [spec for name in BLOCKS if (spec := PRECISIONS[name].weight) is not None]
    kind = weight.grid.kind
    widths = WIDTHS[kind] or (weight.dtype,)
    groups: Iterable[int | None] = (None,) if weight.group_size is None else (*GROUPS[kind], weight.group_size)
    return [replace(weight, dtype=dtype, group_size=group) for group in groups for dtype in widths]


def _divides(scheme: QuantScheme, in_features: int) -> bool:
    block = scheme.weight.block if scheme.weight is not None else None
    return block is None or in_features % block == 0


def _named(scheme: QuantScheme, base: Method) -> Change:
    return {} if scheme == base.scheme else {"precision": precision_name(scheme)}


def _branches(base: Method) -> list[Change]:
    """A low-rank branch may go: its bytes may do more as wider codes."""
    return [{}, {"optimizer": "smooth"}] if base.value("optimizer") == SvdQuant.name else [{}]


def format_candidates(
    layer: nn.Module,
    base: Method,
    stats: InputStats,
    segments: Segments | None,
    *,
    name: str,
    fixed: frozenset[str] = frozenset(),
) -> Layer:
    """The method at every format of a layer, with and without its low-rank branch, with errors and costs.

    What the base's transforms are (α, ranks) is found at its own format once, and holds for all while they are judged;
    the format that is chosen is then solved for itself.

    Args:
        stats: of its input, with fold 0's Gram matrix kept apart.
        fixed: fields that stay as they are in `base`.

    Raises:
        QuantizationError: calibration filled one fold only.
    """
    linear = as_linear(layer)
    if window_of(layer) is not None:
        fixed |= {"rotate"}  # see `layer_method`
    schemes = [base.scheme] if "precision" in fixed else formats_of(base.scheme, linear.in_features)
    judge = Judge(layer, base, stats, segments, name, fixed, alike="formats")
    plain = judge(PLAIN)
    own = [judge({**_named(scheme, base), **other}) for other in _branches(base) for scheme in schemes]
    found = [candidate for candidate in own if candidate is not None]
    if plain is None or not found:
        raise QuantizationError(f"{name}: its overrides leave nothing to choose; skip it or drop some of them")
    return Layer(name, plain, found, linear.weight.numel())
