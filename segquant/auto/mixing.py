"""Mixed formats: every layer's width and group size, by what its error does to the output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from torch import nn

from segquant.auto.budget import Candidate, Layer
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

    At its own format the method is solved and judged on held-out rows. At others its weight is rounded to nearest, with
    the same transforms, and what the method gains on that is taken to be the same: a fraction of the time, and the same
    choices but for layers where two are level. What is chosen is then solved for itself.

    Args:
        stats: of its input, with fold 0's Gram matrix kept apart.
        fixed: fields that stay as they are in `base`.

    Raises:
        QuantizationError: calibration filled one fold only.
    """
    linear = as_linear(layer)
    if window_of(layer) is not None:
        fixed |= {"rotate"}  # see `layer_method`
    judge = Judge(layer, base, stats, segments, name, fixed, shares_formats=True)
    solved = [(change, found) for change in _branches(base) if (found := judge(change)) is not None]
    plain = judge(PLAIN)
    if plain is None or not solved:
        raise QuantizationError(f"{name}: its overrides leave nothing to choose; skip it or drop some of them")
    schemes = [] if "precision" in fixed else formats_of(base.scheme, linear.in_features)[1:]
    plainly = {"calibrator": "amax", "bias_correction": False, "ranges": base.ranges.coarse(), **_without_branch(base)}
    rounded = [judge({**plainly, "precision": precision_name(scheme)}) for scheme in (base.scheme, *schemes)]
    others = [candidate for candidate in rounded if candidate is not None]
    candidates = [each for change, own in solved for each in _scaled(change, own, others)]
    return Layer(name, plain, candidates, linear.weight.numel())


def _without_branch(base: Method) -> Change:
    return {"optimizer": "smooth"} if base.value("optimizer") == SvdQuant.name else {}


def _branches(base: Method) -> list[Change]:
    """A low-rank branch may go: its bytes may do more as wider codes."""
    return [{}, *filter(None, [_without_branch(base)])]


def _scaled(change: Change, own: Candidate, rounded: Sequence[Candidate]) -> Iterator[Candidate]:
    """`own`, and what it would be at the formats of `rounded`, whose first is rounding at its own.

    Errors of inputs, which no calibrator mends, are in all of `rounded`: the least of them is taken for theirs.
    """
    yield own
    if not rounded:
        return
    floor = min(candidate.error for candidate in rounded) ** 2
    gap = rounded[0].error ** 2 - floor
    gain = max(own.error**2 - floor, 0.0) / gap if gap > 0 else 1.0
    for other in rounded[1:]:
        error = (floor + gain * (other.error**2 - floor)) ** 0.5
        size = own.bytes + other.bytes - rounded[0].bytes
        precision = {"precision": other.change["precision"]}
        yield Candidate({**precision, **change}, error, size, own.operations, other.bits)
