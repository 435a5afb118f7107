"""What is found out about a run once, however often a report asks: a thousand runs are compared with one another."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from segquant_bench.eval.results import RunResult

P = ParamSpec("P")
T = TypeVar("T")


def once_per_run(function: Callable[Concatenate[RunResult, P], T]) -> Callable[Concatenate[RunResult, P], T]:
    """Keep what `function` returns for a run (and hashable arguments) in the run; nobody may change it."""

    @functools.wraps(function)
    def kept(run: RunResult, /, *args: P.args, **kwargs: P.kwargs) -> T:
        key = (function, *args, *kwargs.items())
        if key not in run.memo:
            run.memo[key] = function(run, *args, **kwargs)
        found: T = run.memo[key]
        return found

    return kept
