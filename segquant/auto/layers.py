"""`auto`: every layer takes the candidate with the least output error on held-out rows, within a budget.

Our reading of "adaptively combines complementary techniques" (arXiv 2507.14811).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence

from torch import nn

from segquant.auto.budget import Candidate, Layer, choose, limits_of
from segquant.auto.candidates import PLAIN, Change, changed, other_precisions
from segquant.auto.judge import Judge
from segquant.auto.mixing import at_formats, formats_of, near
from segquant.errors import QuantizationError
from segquant.graph.segments import Segments
from segquant.layers.linear import QuantLinear
from segquant.method.parts import FORMATS
from segquant.method.plan_file import LayerPlan
from segquant.method.spec import Method
from segquant.method.targets import layer_method
from segquant.modules.layers import as_linear, window_of
from segquant.numerics.formats import QuantScheme
from segquant.numerics.precisions import precision_name
from segquant.observers.stats import InputStats
from segquant.optimizers.svdquant import SvdQuant
from segquant.solve.which_fold import left_alone

WITHOUT_BRANCH: Change = {"optimizer": "smooth"}
"""A low-rank branch may go: its bytes may do more as wider codes."""


def pinned(method: Method, name: str) -> frozenset[str]:
    """Fields that the user's overrides fix for this layer."""
    keys = {key for pattern, values in method.targets.overrides if fnmatch.fnmatchcase(name, pattern) for key in values}
    return frozenset(keys)


def layer_candidates(
    layer: nn.Module,
    base: Method,
    stats: InputStats,
    segments: Segments | None,
    *,
    name: str,
    fixed: frozenset[str] = frozenset(),
) -> Layer:
    """All candidates of a layer with their errors and costs: methods at the base's format, the best of them at others.

    With `Budget.over` "formats" the base itself is the one method.

    Args:
        stats: of its input, with fold 0's Gram matrix kept apart.
        fixed: fields that stay as they are in `base`.

    Raises:
        QuantizationError: calibration filled one fold only.
    """
    assert base.budget is not None
    if window_of(layer) is not None:
        fixed |= {"rotate"}  # see `layer_method`
    schemes = _schemes(base, as_linear(layer).in_features, fixed)
    mixes = base.budget.average_bits is not None or any(_is_finer(each, base) for each in schemes)
    once = base.budget.over != FORMATS and (not mixes or base.scheme.input is None)
    judge = Judge(layer, base, stats, segments, name, fixed, once)
    plain = judge(PLAIN)
    if base.budget.over == FORMATS:
        found = _of_one_method(judge, schemes)
    else:
        found = [judge.told(candidate) for candidate in _of_methods(judge, schemes, mixes)]
    if plain is None or not found:
        raise QuantizationError(f"{name}: its overrides leave nothing to choose; skip it or drop some of them")
    return Layer(name, plain, found, as_linear(layer).weight.numel())


def rounded(
    layer: nn.Module,
    base: Method,
    stats: InputStats,
    segments: Segments | None,
    *,
    name: str,
    fixed: frozenset[str] = frozenset(),
) -> nn.Module:
    """The layer rounded to nearest, as `Layer.plain` is, with the statistics of all rows."""
    plain = changed(base, {key: value for key, value in PLAIN.items() if key not in fixed})
    return QuantLinear.from_float(layer, left_alone(layer_method(plain, layer)), stats, segments, name=name)


def _of_one_method(judge: Judge, schemes: Sequence[QuantScheme]) -> list[Candidate]:
    changes: list[Change] = [{}, *([WITHOUT_BRANCH] if judge.base.value("optimizer") == SvdQuant.name else [])]
    solved = [candidate for change in changes if (candidate := judge(change)) is not None]
    return [*solved, *at_formats(judge, solved, changes[-1], schemes)]


def _of_methods(judge: Judge, schemes: Sequence[QuantScheme], mixes: bool) -> list[Candidate]:
    """Formats first: where they may mix they choose the bytes, and methods are compared at one of them.

    Then a layer's error decides how many bytes it gets, and all folds tell it; else, and where weights alone have an
    error, one does as well.
    """
    found = judge.methods(mixes=mixes)
    if not found or not mixes:
        return found
    best = min(found, key=lambda candidate: candidate.error)
    found += at_formats(judge, [best], dict(best.change), schemes)
    if judge.base.budget is not None and judge.base.budget.average_bits is not None:
        others = other_precisions(judge.base.scheme, judge.linear.in_features)
        found += [c for other in others if (c := judge({**best.change, "precision": other})) is not None]
    return found


def _is_finer(scheme: QuantScheme, base: Method) -> bool:
    one, own = scheme.weight, base.scheme.weight
    assert one is not None and own is not None
    return one.bits > own.bits or (one.group_size or 0) < (own.group_size or 0)


def _schemes(base: Method, in_features: int, fixed: frozenset[str]) -> list[QuantScheme]:
    """Other formats than the base's; none where it is pinned."""
    found = [] if "precision" in fixed else formats_of(base.scheme, in_features)[1:]
    wide = base.budget is not None and base.budget.average_bits is not None  # fewer bits than the base's are asked for
    return found if wide else near(found, base.scheme)


def choose_plan(layers: Sequence[Layer], base: Method) -> list[LayerPlan]:
    assert base.budget is not None
    try:
        chosen = choose(layers, limits_of(base.budget, layers))
    except ValueError as error:
        raise QuantizationError(str(error)) from error
    return [
        LayerPlan(
            layer.name,
            _readable(candidate.change, base),
            round(candidate.error, 6),
            candidate.bytes,
            round(candidate.operations / layer.weights, 4),
            round(layer.plain.error, 6),
            None if layer.gain is None else round(layer.gain, 4),
        )
        for layer, candidate in zip(layers, chosen, strict=True)
    ]


def _readable(change: Mapping[str, object], base: Method) -> dict[str, object]:
    own = {"precision": precision_name(base.scheme)}
    return {key: value for key, value in change.items() if value != (own[key] if key in own else base.value(key))}
