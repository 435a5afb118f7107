"""The judgement: folders of pictures go in, metrics with intervals, tables and figures come out.

`evaluate` and `retrieval_accuracy` need torch and are imported when first asked for, so that reading
results and rendering reports does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.metrics.backends import Backends
from segquant_bench.eval.results import EvalResult, RunResult, load_result, load_results

if TYPE_CHECKING:
    from segquant_bench.eval.metrics.metrics import METRICS, evaluate, retrieval_accuracy

__all__ = [
    "METRICS",
    "Backends",
    "EvalError",
    "EvalResult",
    "RunResult",
    "evaluate",
    "load_result",
    "load_results",
    "retrieval_accuracy",
]

_LAZY = ("METRICS", "evaluate", "retrieval_accuracy")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from segquant_bench.eval.metrics import metrics

        return getattr(metrics, name)
    raise AttributeError(f"module 'eval' has no attribute {name!r}")
