"""Errors by layer: Tables 3, 6 and 12 of arXiv 2507.14811."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from segquant_bench.eval.report.comparing.pairs import as_ratio, log_ratio
from segquant_bench.eval.report.runs.groups import group_key, sort_runs
from segquant_bench.eval.report.runs.labels import labels, method_name, settings
from segquant_bench.eval.results import RunResult
from segquant_bench.eval.tables.numbers import format_ratio
from segquant_bench.eval.tables.render_csv import to_csv
from segquant_bench.eval.tables.table import DASH, Cell, Row, Table, heads, number, row

MOST_COLUMNS = 12
CUTS = ("no cuts", "graph", "random", "wrong")
SIDES = {"layers": ("output", "input"), "with a cut output": ("output",), "with a cut input": ("input",)}
UNTOLD = ("quantizer.seglinear", "quantizer.cuts", "quantizer.seed")
LAYERS_NOTE = (
    "Relative error |Y − Ŷ| / |Y| of every quantized linear on held-out inputs of the unquantized model. Cuts: pieces "
    "of the output and of the input that the graph names, and the activation that feeds the layer. Tables of more than "
    "12 methods are in layers.csv only."
)
CUTS_NOTE = (
    "The same errors for the layers that the graph cuts. Random: as many pieces at other places, geometric mean over "
    "the draws; wrong: one piece more, all equally wide. Ratio: geometric mean over layers against no cuts, with its "
    "95 % paired interval over layers."
)


def layers_csv(runs: Sequence[RunResult]) -> str:
    """One line per run and layer."""
    ordered = [run for run in sort_runs(runs) if not run.is_float]
    names = labels(ordered)
    columns = heads(("model", "dataset", "seed", "precision", "method", "layer", "cut"), ("error",))
    rows = []
    for run in ordered:
        keys = tuple(map(Cell, (run.model, run.dataset, str(run.seed), run.precision, names[id(run)])))
        for layer, error in run.every_layer_error.items():
            rows.append((*keys, Cell(layer), Cell(cut_of(run, layer)), Cell("", value=error)))
    return to_csv(Table(columns, (tuple(rows),)))


def cut_of(run: RunResult, layer: str) -> str:
    """A layer's cuts and activation: ``out 6, in 2, silu``."""
    plan: dict[str, Any] = (run.statistics.get("segments") or {}).get(layer, {})
    told = [f"{name} {len(plan[side])}" for name, side in (("out", "output"), ("in", "input")) if plan.get(side)]
    activations = dict.fromkeys(name for name in [plan.get("activation"), *(plan.get("input_activations") or ())])
    return ", ".join([*told, *(name for name in activations if name)])


def layer_sheets(runs: Sequence[RunResult]) -> list[Table]:
    """Table 12: layers in rows, methods in columns, per precision."""
    ordered = [run for run in sort_runs(runs) if run.every_layer_error]
    names = labels(ordered)
    groups: dict[object, list[RunResult]] = {}
    for run in ordered:
        groups.setdefault(group_key(run)[:-1], []).append(run)  # the layers of all components stand in one table
    return [_layer_sheet(members, names) for members in groups.values() if len(members) <= MOST_COLUMNS]


def _layer_sheet(runs: Sequence[RunResult], names: dict[int, str]) -> Table:
    errors = [run.every_layer_error for run in runs]
    layers = dict.fromkeys(layer for found in errors for layer in found)
    rows = [row([layer, cut_of(runs[0], layer)], _cells([found.get(layer) for found in errors])) for layer in layers]
    means = _cells([_geometric_mean(list(found.values())) for found in errors])
    columns = heads(("layer", "cuts"), [names[id(run)] for run in runs])
    summary = (row(["geometric mean", ""], means),)
    return Table(columns, (tuple(rows),), summary, f"Layer errors at {_where(runs[0])}")


def _where(run: RunResult) -> str:
    return f"{run.precision}: {run.model} on {run.dataset}, seed {run.seed}"


def _cells(values: Sequence[float | None]) -> list[Cell]:
    return [Cell(DASH) if value is None else number(value) for value in values]


def _geometric_mean(values: Sequence[float]) -> float | None:
    positive = [value for value in values if value > 0]
    return math.exp(sum(map(math.log, positive)) / len(positive)) if positive else None


def cut_sheets(runs: Sequence[RunResult]) -> list[Table]:
    """Tables 3 and 6: cut layers' errors without cuts, and with the graph's, random or wrong ones."""
    families: dict[object, dict[str, list[RunResult]]] = {}
    for run in sort_runs(runs):
        if run.layer_errors and run.statistics.get("segments") and "quantizer.seglinear" in settings(run):
            others = sorted((key, repr(value)) for key, value in settings(run).items() if key not in UNTOLD)
            family = families.setdefault((group_key(run), method_name(run), tuple(others)), {})
            family.setdefault(_kind_of_cut(run), []).append(run)
    told = [family for family in families.values() if len(family) > 1]
    names = labels([members[0] for family in told for members in family.values()], UNTOLD)
    return [_cut_sheet(family, names) for family in told]


def _kind_of_cut(run: RunResult) -> str:
    values = settings(run)
    return values.get("quantizer.cuts") or "graph" if values["quantizer.seglinear"] else "no cuts"


def _cut_sheet(family: dict[str, list[RunResult]], names: dict[int, str]) -> Table:
    kinds = [kind for kind in CUTS if kind in family]
    first = family[kinds[0]][0]
    plans = first.statistics["segments"]
    cut = [layer for layer in first.layer_errors if any(plans.get(layer, {}).get(side) for side in ("output", "input"))]
    errors = {
        kind: [_geometric_mean([run.layer_errors.get(layer, 0.0) for run in family[kind]]) for layer in cut]
        for kind in kinds
    }
    rows = [
        row([layer, cut_of(first, layer)], _cells([errors[kind][index] for kind in kinds]))
        for index, layer in enumerate(cut)
    ]
    summary: list[Row] = []
    for title, sides in SIDES.items():
        chosen = [index for index, layer in enumerate(cut) if any(plans[layer].get(side) for side in sides)]
        if chosen and (len(sides) > 1 or len(chosen) < len(cut)):
            part = {kind: [errors[kind][index] for index in chosen] for kind in kinds}
            summary += _summary(f"{len(chosen)} {title}", part, first.seed)
    draws = {kind: f"{kind} ({len(family[kind])} draws)" if len(family[kind]) > 1 else kind for kind in kinds}
    title = f"Cuts under {names[id(first)]} at {_where(first)}"
    return Table(heads(("layer", "graph's cut"), list(draws.values())), (tuple(rows),), tuple(summary), title)


def _summary(title: str, errors: dict[str, list[float | None]], seed: int) -> list[Row]:
    means = _cells([_geometric_mean([value for value in values if value]) for values in errors.values()])
    found = [row([f"geometric mean of {title}", ""], means)]
    if "no cuts" in errors:
        ratios = [
            DASH if kind == "no cuts" else _ratio(values, errors["no cuts"], seed) for kind, values in errors.items()
        ]
        found.append(row(["ratio to no cuts", ""], ratios))
    return found


def _ratio(ours: Sequence[float | None], theirs: Sequence[float | None], seed: int) -> str:
    gap = log_ratio([value or 0.0 for value in ours], [value or 0.0 for value in theirs], seed)
    return DASH if gap is None else format_ratio(*as_ratio(gap))
