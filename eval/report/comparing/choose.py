"""Which runs the user wants to see compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.report.runs.groups import data_key, group_key, quantized_parts
from segquant_bench.eval.report.runs.labels import method_name
from segquant_bench.eval.results import RunResult
from segquant_bench.hints import nearest

Couple = tuple[RunResult, RunResult]
AT = " at "
"""Between a method and its precision, where these are compared across precisions."""


@dataclass(frozen=True)
class Choice:
    """A method that all others are compared with, and pairs ``A:B``; methods as tables call them, or ``A at w4a8``."""

    baseline: str | None = None
    pairs: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.baseline is not None or bool(self.pairs)


def chosen(runs: Sequence[RunResult], names: Mapping[int, str], choice: Choice) -> tuple[list[Couple], list[str]]:
    """Pairs of runs of the same model, prompts, latents and (unless one names its own) precision.

    Also a sentence for every group of runs that the baseline is not in.

    Raises:
        EvalError: a name is unknown or of several runs, or a pair has no runs to compare.
    """
    found: list[Couple] = []
    refused: list[str] = []
    if choice.baseline is not None:
        found, refused = _against(choice.baseline, runs, names)
    for pair in choice.pairs:
        found += _pair(pair, runs, names)
    unique = {(id(ours), id(theirs)): (ours, theirs) for ours, theirs in found}
    return list(unique.values()), refused


def _against(baseline: str, runs: Sequence[RunResult], names: Mapping[int, str]) -> tuple[list[Couple], list[str]]:
    theirs = _find(baseline, runs, names)
    others = [run for run in runs if all(run is not each for each in theirs)]
    found = [(ours, each) for ours in others for each in theirs if _alike(ours, each, AT in baseline)]
    met = {id(ours) for ours, _ in found}
    left = dict.fromkeys(run.precision for run in others if id(run) not in met)
    return found, [f"runs at {precision} with {baseline}, which has no run beside them" for precision in left]


def _pair(pair: str, runs: Sequence[RunResult], names: Mapping[int, str]) -> list[Couple]:
    first, second = _split(pair, runs, names)
    ours, theirs = _find(first, runs, names), _find(second, runs, names)
    found = [(a, b) for a in ours for b in theirs if a is not b and _alike(a, b, AT in first or AT in second)]
    if not found:
        raise EvalError(
            f"--pairs {pair}: the two have no runs of the same model, prompts, latents and precision; name precisions "
            f"to compare across them, as in '{first.partition(AT)[0]} at w4a8:{second.partition(AT)[0]} at w4a4'"
        )
    return found


def _split(pair: str, runs: Sequence[RunResult], names: Mapping[int, str]) -> tuple[str, str]:
    """At the colon, or of several at the one with known names on both sides."""
    parts = pair.split(":")
    cuts = [(":".join(parts[:n]).strip(), ":".join(parts[n:]).strip()) for n in range(1, len(parts))]
    known = [cut for cut in cuts if all(_matching(name, runs, names) for name in cut)]
    if not cuts or not all(cuts[0]):
        raise EvalError(f"--pairs takes two methods with a colon between, A:B; {pair!r} was given")
    return (known or cuts)[0]


def _find(name: str, runs: Sequence[RunResult], names: Mapping[int, str]) -> list[RunResult]:
    found = _matching(name, runs, names)
    if not found:
        raise EvalError(f"no run is called {name!r}; {nearest(name, set(names.values()))}")
    groups: dict[object, list[str]] = {}
    for run in found:
        groups.setdefault(group_key(run), []).append(names[id(run)])
    several = next((members for members in groups.values() if len(members) > 1), None)
    if several:
        raise EvalError(f"{name!r} is the method of several runs: {', '.join(several)}; name one of them in quotes")
    return found


def _matching(name: str, runs: Sequence[RunResult], names: Mapping[int, str]) -> list[RunResult]:
    """By the name in tables, else by the method alone."""
    for known in (lambda run: names[id(run)], method_name):
        found = [run for run in runs if name in (known(run), f"{known(run)}{AT}{run.precision}")]
        if found:
            return found
    return []


def _alike(ours: RunResult, theirs: RunResult, across: bool) -> bool:
    """Whether pictures pair up; `across` precisions too."""
    same = data_key(ours) == data_key(theirs) and quantized_parts(ours) == quantized_parts(theirs)
    return same and (across or ours.precision == theirs.precision)
