from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from segquant_bench.eval.metrics.statistics import Difference
from segquant_bench.eval.report.comparing.adjust import ADJUSTMENTS, ALPHA
from segquant_bench.eval.report.comparing.choose import Choice, chosen
from segquant_bench.eval.report.comparing.comparison import AGAINST, TIE, Comparison, Names
from segquant_bench.eval.report.comparing.pairs import Pair, difference
from segquant_bench.eval.report.runs.groups import group_key, home, quantized_parts, sort_runs
from segquant_bench.eval.report.runs.labels import is_subject, labels, method_name, places, prompts_name
from segquant_bench.eval.results import RunResult

UNQUANTIZED = "unquantized"


def compare_runs(runs: Sequence[RunResult]) -> tuple[list[Comparison], list[str]]:
    """Comparisons in table order, and a sentence per pair that cannot be compared.

    SegQuant, auto and the user's own methods against every quantized run before them of the same group; variants
    against their method's first run, and those against each other method's first. Of a method that ran by several
    engines, the runs by the same one.
    """
    found: list[Comparison] = []
    refused: list[str] = []
    ordered = [run for run in sort_runs(runs) if not run.is_float]
    names, where = labels(ordered), places(ordered)
    prompts: dict[object, set[tuple[str, ...]]] = defaultdict(set)
    for run in ordered:
        prompts[_all_but_prompts(run)].add(run.prompts)
    earlier: dict[object, list[RunResult]] = defaultdict(list)  # alike but for components: a report has many groups
    for ours in ordered:
        before = earlier[group_key(ours)[:-1]]
        opponents = _opponents(ours, before)
        before.append(ours)
        for theirs in opponents:
            made, left = Pair(ours, theirs, _names(ours, theirs, names, where)).compare()
            found += made
            refused += left
        if not opponents and is_subject(ours):
            refused += [_alone(ours, names[id(ours)])] if len(prompts[_all_but_prompts(ours)]) > 1 else []
    return found, refused


def _all_but_prompts(run: RunResult) -> object:
    return (run.model, run.fingerprint, run.dataset, run.seed, *group_key(run)[1:])


def _alone(run: RunResult, name: str) -> str:
    return f"{name} at {run.precision} on {prompts_name(run)}, because the other runs have different prompts"


def _opponents(ours: RunResult, before: Sequence[RunResult]) -> list[RunResult]:
    """Of the runs before it that are alike but for components."""
    before = sorted(before, key=lambda run: not _comparable(run, ours))  # stable: each method's first is of our engine
    group = [run for run in before if quantized_parts(run) == quantized_parts(ours)]
    elsewhere: dict[object, RunResult] = {}
    for run in before:
        parts, own = set(quantized_parts(run)), set(quantized_parts(ours))
        if run.quantizer == ours.quantizer and (parts < own or parts > own):
            elsewhere.setdefault(group_key(run), run)
    variants = [run for run in group if method_name(run) == method_name(ours)]
    if not is_subject(ours):
        return [*variants[:1], *elsewhere.values()]
    if not variants:
        able = {method_name(run) for run in group if _comparable(run, ours)}
        chosen = [run for run in group if _comparable(run, ours) or method_name(run) not in able]
        return [*chosen, *elsewhere.values()]
    others = {method_name(run): run for run in reversed(group) if run not in variants}
    return [*variants[:1], *reversed(others.values())]


def _comparable(run: RunResult, ours: RunResult) -> bool:
    return run.has_own_layers or run.engine == ours.engine


def against_unquantized(runs: Sequence[RunResult]) -> list[Comparison]:
    """Every recorded paired difference to the unquantized model."""
    ordered = [run for run in sort_runs(runs) if not run.is_float]
    names, where = labels(ordered), places(ordered)
    found = []
    for run in ordered:
        for m in run.metrics:
            if m.delta is None or m.delta_interval is None:
                continue
            told = Names(names[id(run)], UNQUANTIZED, run.precision, where[id(run)], headline=False)
            gap = difference(told, m, Difference(m.delta, m.delta_interval, m.n))
            found.append(replace(gap, path=run.path))
    return found


def _names(ours: RunResult, theirs: RunResult, names: dict[int, str], where: dict[int, str]) -> Names:
    headline = is_subject(ours) and (not is_subject(theirs) or home(ours) != home(theirs))
    return Names(names[id(ours)], names[id(theirs)], ours.precision, where[id(ours)], headline)


def compare_chosen(runs: Sequence[RunResult], choice: Choice) -> tuple[list[Comparison], list[str]]:
    """The user's own choice instead: every run against one, and chosen pairs; see `choose`."""
    ordered = [run for run in sort_runs(runs) if not run.is_float]
    names, where = labels(ordered), places(ordered)
    found: list[Comparison] = []
    couples, refused = chosen(ordered, names, choice)
    for ours, theirs in couples:
        told = replace(_names(ours, theirs, names, where), headline=True)
        if ours.precision != theirs.precision:
            told = replace(told, precision=f"{ours.precision}{AGAINST}{theirs.precision}")
        made, left = Pair(ours, theirs, told).compare()
        found += made
        refused += left
    return found, refused


def adjusted(comparisons: Sequence[Comparison], adjustment: str) -> list[Comparison]:
    """With p-values for all comparisons together; what does not pass by them is not distinguishable."""
    values = ADJUSTMENTS[adjustment][1]([each.p for each in comparisons])
    return [
        replace(each, adjusted=value, verdict=each.verdict if value < ALPHA else TIE)
        for each, value in zip(comparisons, values, strict=True)
    ]
