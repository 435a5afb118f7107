"""Mixed formats: every layer's width and group size, by what its error does to the output."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from segquant import registry
from segquant.auto.budget import Candidate
from segquant.auto.candidates import WIDTHS, Change
from segquant.auto.judge import Judge
from segquant.method.spec import Method
from segquant.numerics.formats import QuantScheme, QuantSpec
from segquant.numerics.precisions import PRECISIONS, precision_name
from segquant.numerics.scales import K_BITS

GROUPS = {"int": (32, 64, 128), "uint": (32, 64, 128), "fp": (16, 32, 64), "nf": (32, 64, 128)}
"""Group sizes that may mix, by the kind of the base's dtype; only where the base has groups."""
NARROW = "e4m3"
"""A scale of integers in groups that may mix with the base's: half a bfloat16, and next to no error."""
BLOCKS = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0")
"""GGUF's formats that may mix, as its own files of several do."""
FEWER = 2
"""Bits that a layer may have less than the base, unless fewer are asked for on average: errors and gains measured at
the base say little of far coarser codes."""
_BLOCK_SCALES = {*K_BITS, "q0", "q1"}


def formats_of(scheme: QuantScheme, in_features: int) -> list[QuantScheme]:
    """The scheme, and those with weights of other widths, groups and scales of the same kind; inputs stay as they are.

    What shares a scale stays too: a format per tensor or channel has no groups beside it, which its kernels lack.
    """
    weight = scheme.weight
    assert weight is not None
    found = [scheme, *(replace(scheme, weight=other) for other in _weights(weight))]
    return [each for each in dict.fromkeys(found) if each == scheme or _divides(each, in_features)]


def near(schemes: Iterable[QuantScheme], base: QuantScheme) -> list[QuantScheme]:
    """Those with at most `FEWER` bits less than the base's weights."""
    assert base.weight is not None
    least = base.weight.bits - FEWER
    return [scheme for scheme in schemes if scheme.weight is not None and scheme.weight.bits >= least]


def _weights(weight: QuantSpec) -> Iterable[QuantSpec]:
    if weight.scale_dtype in _BLOCK_SCALES or weight == PRECISIONS["q8_0"].weight:
        return [spec for name in BLOCKS if (spec := PRECISIONS[name].weight) is not None]
    kind = weight.grid.kind
    widths, groups, scales = WIDTHS[kind] or (weight.dtype,), [weight.group_size], [weight.scale_dtype]
    if weight.group_size is not None:
        groups = [*GROUPS[kind], weight.group_size]
        scales += [NARROW] if kind in ("int", "uint") else []
    each = itertools.product(scales, groups, widths)
    return [replace(weight, dtype=dtype, group_size=group, scale_dtype=scale) for scale, group, dtype in each]


def _divides(scheme: QuantScheme, in_features: int) -> bool:
    block = scheme.weight.block if scheme.weight is not None else None
    return block is None or in_features % block == 0


def at_formats(
    judge: Judge, solved: Sequence[Candidate], rounded: Change, schemes: Sequence[QuantScheme]
) -> list[Candidate]:
    """Candidates as they would be at other formats than their own.

    A weight is rounded to nearest at every format, after the candidates' transforms, and what they gain on that at
    their own format is taken to be the same: a fraction of the time of solving, and the same choices but where two are
    level. What is chosen is then solved for itself.

    Args:
        solved: judged at the base's format; they differ in the low-rank branch alone.
        rounded: changes one of them to rounding.
    """
    plainly = {**rounded, "calibrator": "amax", "bias_correction": False, "ranges": judge.base.ranges.coarse()}
    if "ranges" in rounded:
        plainly["ranges"] = registry.find("range", rounded["ranges"])().coarse()
    own = judge(plainly, roughly=True)
    if own is None:
        return []
    others = _rounded(judge, plainly, own, schemes)
    return [found for each in solved for found in _scaled(each, own, others)]


def _rounded(judge: Judge, plainly: Change, own: Candidate, schemes: Sequence[QuantScheme]) -> list[Candidate]:
    """Rounding at other formats: judged where one thing is not the base's, from these where several are not.

    A group's range does not know the width of its codes, so errors of weights are the product of what each does.
    """
    base = judge.base.scheme
    crossed = {scheme: ones for scheme in schemes if (ones := _apart(scheme, base)) is not None}
    found = {base: own}
    for scheme in schemes:
        change = {**plainly, **_named(scheme, judge.base)}
        if scheme not in crossed and (candidate := judge(change, roughly=True)) is not None:
            found[scheme] = candidate
    floor = min(candidate.error for candidate in found.values()) ** 2
    for scheme, ones in crossed.items():
        if all(each in found for each in ones):
            change = {**plainly, **_named(scheme, judge.base)}
            size = own.bytes + judge.bytes_of(change) - judge.bytes_of(plainly)
            error = _product(own.error, [found[each].error for each in ones], floor)
            found[scheme] = replace(found[ones[0]], change=change, error=error, bytes=size)
    return [candidate for scheme, candidate in found.items() if scheme != base]


def _apart(scheme: QuantScheme, base: QuantScheme) -> list[QuantScheme] | None:
    """The base with one thing of the scheme each: its width, its groups, its scales.

    None where they differ in one thing at most, and of GGUF's blocks.
    """
    one, own = scheme.weight, base.weight
    assert one is not None and own is not None
    if one.grid.kind != own.grid.kind or _BLOCK_SCALES & {one.scale_dtype, own.scale_dtype}:
        return None
    ones = [
        replace(own, dtype=one.dtype),
        replace(own, group_size=one.group_size),
        replace(own, scale_dtype=one.scale_dtype),
    ]
    return None if one in (own, *ones) else [replace(base, weight=each) for each in ones]


def _product(own: float, ones: Sequence[float], floor: float) -> float:
    """An error from those where one thing differs from what `own` is of; `floor`: the square that all have."""
    gap = own**2 - floor
    shares = [max(each**2 - floor, 0.0) / gap for each in ones] if gap > 0 else [0.0]
    return math.sqrt(floor + max(gap, 0.0) * math.prod(shares))


def _named(scheme: QuantScheme, base: Method) -> Change:
    return {} if scheme == base.scheme else {"precision": precision_name(scheme)}


def _scaled(solved: Candidate, rounded: Candidate, others: Sequence[Candidate]) -> Iterator[Candidate]:
    """`solved` at the formats of `others`, if it gains there on them what it gains on `rounded` at its own.

    Errors of inputs, which no calibrator mends, are in all of them: the least is taken for theirs.
    """
    floor = min(candidate.error for candidate in (rounded, *others)) ** 2
    gap = rounded.error**2 - floor
    gain = max(solved.error**2 - floor, 0.0) / gap if gap > 0 else 1.0
    for other in others:
        error = (floor + gain * (other.error**2 - floor)) ** 0.5
        change = {**solved.change, "precision": other.change["precision"]}
        yield Candidate(change, error, solved.bytes + other.bytes - rounded.bytes, solved.operations, other.bits)
