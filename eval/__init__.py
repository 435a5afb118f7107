"""Metrics, tables and figures of folders of pictures."""

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.metrics.backends import Backends, Network
from segquant_bench.eval.metrics.clip import retrieval_accuracy
from segquant_bench.eval.metrics.evaluate import evaluate
from segquant_bench.eval.metrics.evaluation import Evaluation
from segquant_bench.eval.metrics.metric import Metric
from segquant_bench.eval.metrics.registry import METRICS, register_metric
from segquant_bench.eval.results import EvalResult, RunResult, load_result, load_results

__all__ = [
    "METRICS",
    "Backends",
    "EvalError",
    "EvalResult",
    "Evaluation",
    "Metric",
    "Network",
    "RunResult",
    "evaluate",
    "load_result",
    "load_results",
    "register_metric",
    "retrieval_accuracy",
]
