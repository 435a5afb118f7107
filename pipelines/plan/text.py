"""A plan as plain text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from segquant import QuantSpec
from segquant.numerics.precisions import scheme_of
from segquant_bench.pipelines.plan.counts import CONV, LINEAR, CutKind, LayerEntry
from segquant_bench.pipelines.plan.sizes import ComponentPlan, DualKind, Estimate

NAMES_SHOWN = 2
NAMES_WIDTH = 80
SIZES_SHOWN = 4
_WORDS = {LINEAR: "linear", CONV: "convolution"}
_SIDES = {"output": "output cut", "input": "input cut", "none": "not cut"}


def render(plan: ComponentPlan, quantizer: str, *, convolutions: bool = False, layers: bool = False) -> str:
    """`layers` adds a line for each layer."""
    parts = [_head(plan), _cuts(plan), _dual(plan), _sizes(plan, quantizer, convolutions)]
    if layers:
        parts.append(_layers(plan.layers))
    return "\n\n".join(part for part in parts if part)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Columns of equal width, the first `left` and the last flush left."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    last = len(head) - 1

    def cell(line: list[str], column: int) -> str:
        flush_left = column < left or column == last
        return line[column].ljust(widths[column]) if flush_left else line[column].rjust(widths[column])

    return "\n".join(("  " + "  ".join(cell(line, column) for column in range(len(head)))).rstrip() for line in lines)


def amount(number: float) -> str:
    """Three digits: 11.9 B, 340 M, 12."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            return f"{_three(number / size)} {unit}"
    return str(int(number))


def counted(number: int, word: str) -> str:
    """1 layer, 2 layers."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def size(number: float) -> str:
    """Decimal bytes, three digits: 23.8 GB."""
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= 0.9995 * step:
            return f"{_three(number / step)} {unit}"
    return f"{int(number)} B"


def _three(number: float) -> str:
    digits = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{digits}f}"


def percent(share: float | None) -> str:
    """A share of one; "?" if unknown."""
    if share is None:
        return "?"
    return "0 %" if share == 0 else "< 0.1 %" if share < 0.0005 else f"{100 * share:.1f} %"


def pieces(sizes: Sequence[int]) -> str:
    """Sizes of a cut: 24 × 64, or 3072 + 12288."""
    runs = [(value, len(list(group))) for value, group in groupby(sizes)]
    shown = [f"{count} × {value}" if count > 1 else str(value) for value, count in runs[:SIZES_SHOWN]]
    return " + ".join([*shown, *(["…"] if len(runs) > SIZES_SHOWN else [])])


def _names(names: Sequence[str]) -> str:
    shown = names[:1] if len(", ".join(names[:NAMES_SHOWN])) > NAMES_WIDTH else names[:NAMES_SHOWN]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def _head(plan: ComponentPlan) -> str:
    counts = [counted(sum(layer.kind == kind for layer in plan.layers), word) for kind, word in _WORDS.items()]
    inside = [amount(sum(layer.parameters for layer in plan.layers if layer.kind == kind)) for kind in _WORDS]
    lines = [
        f"{plan.component}: {plan.class_name}, {plan.origin}",
        f"{amount(plan.parameters)} parameters, {size(plan.bytes)} at {plan.dtype}; "
        + ", ".join(f"{count} ({held})" for count, held in zip(counts, inside, strict=True))
        + f", the rest {amount(plan.parameters + plan.tied - sum(layer.parameters for layer in plan.layers))}"
        + (f"; {amount(plan.tied)} are tied and counted in every layer that holds them" if plan.tied else ""),
    ]
    if plan.operations is not None:
        lines.append(f"{amount(plan.operations)} multiply-accumulates of these layers in one call")
    lines.append(f"counted at: {_shapes(plan.inputs)}")
    uncalled = [layer.name for layer in plan.layers if layer.rows == 0]
    if uncalled:
        lines.append(
            f"{counted(len(uncalled), 'layer')} never called: {_names(uncalled)} (if calibration does not either, "
            "quantizing asks for quantizer.skip or quantizer.on_uncalled=skip)"
        )
    return "\n".join(lines)


def _shapes(inputs: Mapping[str, Sequence[int]]) -> str:
    shown = (f"{name} {'×'.join(map(str, shape)) or 'a number'}" for name, shape in inputs.items())
    return ", ".join(shown) or "no tensors"


def _cuts(plan: ComponentPlan) -> str:
    def row(kind: CutKind) -> list[str]:
        what = _SIDES[kind.side] + ("" if kind.kind == LINEAR else ", convolution")
        return [
            what,
            pieces(kind.sizes),
            str(kind.layers),
            amount(kind.parameters),
            size(kind.bytes),
            _names(kind.like),
        ]

    cut = {layer.name for layer in plan.layers if layer.segments.output or layer.segments.input}
    head = ["", "pieces", "layers", "parameters", f"at {plan.dtype}", "such as"]
    title = f"Cuts that the graph shows (SegLinear): {len(cut)} of {len(plan.layers)} layers"
    return title + "\n" + table(head, map(row, plan.kinds), left=2)


def _dual(plan: ComponentPlan) -> str:
    fed = Counter(
        name
        for layer in plan.layers
        for name in {layer.segments.activation, *(layer.segments.input_activations or ())}
        if name
    )
    found = ", ".join(f"{name} {count}" for name, count in fed.most_common()) or "none"
    title = f"Layers fed by an activation: {found}"
    if not plan.dual:
        return title + "\nThis quantizer gives none a scale per sign (DualScale)"

    def row(kind: DualKind) -> list[str]:
        cost = "?" if kind.operations is None else amount(kind.operations)
        return [kind.activation, str(kind.layers), cost, percent(kind.share), kind.like]

    head = ["", "layers", "adds", "of all", "layers"]
    return title + "\nA scale per sign (DualScale) adds a second product for\n" + table(head, map(row, plan.dual))


def _spec(spec: QuantSpec | None) -> str:
    if spec is None:
        return "float"
    kind = f"group {spec.group_size}" if spec.group_size else spec.granularity
    scale = "" if spec.scale_dtype == "float32" else f", {spec.scale_dtype}"
    return f"{spec.dtype} {kind}{scale}" + (", dynamic" if spec.dynamic else "")


def _sizes(plan: ComponentPlan, quantizer: str, convolutions: bool) -> str:
    def row(estimate: Estimate) -> list[str]:
        scheme = scheme_of(estimate.precision)
        start = [estimate.precision, _spec(scheme.weight), _spec(scheme.input)]
        if estimate.bytes is None or estimate.plain is None:
            return [*start, "–", "–", "–", "–", "–", "–", "refused, see below"]
        return [
            *start,
            size(estimate.plain),
            size(estimate.bytes),
            percent(estimate.bytes / plan.bytes),
            str(estimate.dual),
            percent(estimate.dual_operations),
            percent(estimate.added_operations),
            _left(estimate),
        ]

    head = ["precision", "weights", "inputs", "rounded", quantizer, "of float", "DualScale", "adds", "all add", ""]
    title = (
        f"Size of the whole, {size(plan.bytes)} unquantized, with {_quantized(plan, convolutions)}; "
        "and operations that DualScale, and all together, add"
    )
    lines = [title, table(head, map(row, plan.estimates), left=3), *_folded(plan)]
    return "\n".join([*lines, *_reasons(plan.estimates)])


def _folded(plan: ComponentPlan) -> list[str]:
    by_number: dict[int, list[str]] = {}
    for each in plan.estimates:
        if each.folded is not None:
            by_number.setdefault(each.folded, []).append(each.precision)
    return [
        f"  smoothing is folded into the norm or linear before {number} of {len(plan.layers)} layers "
        f"({', '.join(precisions)})"
        for number, precisions in by_number.items()
    ]


def _left(estimate: Estimate) -> str:
    if not estimate.left:
        return ""
    note = f"; refused until {len(estimate.unfit)} skipped" if estimate.unfit else ""
    return f"{counted(len(estimate.left), 'layer')} unquantized{note}"


def _quantized(plan: ComponentPlan, convolutions: bool) -> str:
    if convolutions:
        return "linears and convolutions quantized"
    has_convolutions = any(layer.kind == CONV for layer in plan.layers)
    return "linears quantized" + (" (quantizer.convolutions=true: convolutions too)" if has_convolutions else "")


def _reasons(estimates: Sequence[Estimate]) -> list[str]:
    reasons = [f"  {each.precision}: {each.refused}" for each in estimates if each.refused]
    for each in estimates:
        for name, reason in list(each.left.items())[:NAMES_SHOWN]:
            named = reason if reason.startswith(f"{name}: ") else f"{name}: {reason}"
            reasons.append(f"  {each.precision}: {named}")
        if len(each.left) > NAMES_SHOWN:
            reasons.append(f"  {each.precision}: and {len(each.left) - NAMES_SHOWN} more, see --layers or --json")
    return reasons


def _layers(layers: Sequence[LayerEntry]) -> str:
    def row(layer: LayerEntry) -> list[str]:
        cut = layer.segments
        fed = cut.activation or ", ".join(name or "–" for name in cut.input_activations or () if cut.activation is None)
        return [
            layer.name,
            " × ".join(map(str, layer.shape)),
            "?" if layer.rows is None else str(layer.rows),
            pieces(cut.output or ()),
            pieces(cut.input or ()),
            fed if fed.strip("–, ") else "",
        ]

    head = ["layer", "weight", "rows", "output cut", "input cut", "fed by"]
    return "Layers\n" + table(head, map(row, layers))
