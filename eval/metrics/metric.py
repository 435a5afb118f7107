from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.metrics.backends import Backends, Network
from segquant_bench.eval.metrics.statistics import mean_interval, share_difference_interval
from segquant_bench.eval.results import EvalResult, Interval, encode_float
from segquant_bench.eval.results_file import AGAINST, DIRECTIONS

if TYPE_CHECKING:
    from segquant_bench.eval.metrics.evaluation import Evaluation

PAIRED = ("pictures", "resamples", None)
LAST = 100


@dataclass(frozen=True)
class Metric:
    """A metric of one folder of pictures; CONTRIBUTING.md shows how to add one.

    Import torch only inside `compute` and the networks' `load`: reports work without it.

    Attributes:
        name: lower case, digits and underscores.
        direction: ``"lower"`` or ``"higher"``, whichever is better.
        unit: ``"dB"``; empty for none.
        against: ``"reference"`` (the unquantized model's pictures), ``"real"``, ``"prompt"``, or None.
        networks: loaded before anything is computed.
        check: raises EvalError for prompts that it cannot judge the pictures of; called before any is made.
        paired: runs are compared by ``"pictures"``, by ``"resamples"`` (an evaluation's `left_out` or `replicates`),
            or not (None).
        order: place in comparisons and figures.
        headline: shown in the figure and at the top of the page.
    """

    name: str
    direction: str
    compute: Callable[[Evaluation], EvalResult]
    unit: str = ""
    against: str | None = None
    networks: tuple[Network, ...] = ()
    check: Callable[[Sequence[str], Backends], object] = lambda prompts, backends: None
    paired: str | None = "pictures"
    order: int = LAST
    headline: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise EvalError(f"a metric's name is lower case, digits and underscores, {self.name!r} is not")
        for key, known in (("direction", DIRECTIONS), ("against", AGAINST), ("paired", PAIRED)):
            if getattr(self, key) not in known:
                raise EvalError(f"{key} of metric {self.name} is {getattr(self, key)!r}, must be one of {known}")

    @property
    def needs_reference(self) -> bool:
        return self.against == "reference"

    @property
    def needs_real(self) -> bool:
        return self.against == "real"

    def full_name(self, network: str = "") -> str:
        """The result's name.

        >>> Metric("psnr", "higher", print).full_name()
        'psnr'
        >>> Metric("fid_ref", "lower", print).full_name("inception")
        'fid_ref[inception]'
        """
        return f"{self.name}[{network}]" if network else self.name

    def result(self, value: float, n: int, interval: Interval | None, *, backend: str, network: str = "") -> EvalResult:
        """The value over `n` pictures, with its 95 % interval."""
        return EvalResult(
            self.full_name(network), value, n, self.direction, interval, backend, self.against, unit=self.unit
        )

    def per_picture(
        self,
        evaluation: Evaluation,
        values: np.ndarray,
        *,
        backend: str,
        network: str = "",
        unquantized: np.ndarray | None = None,
    ) -> EvalResult:
        """The mean of one value per picture, with its bootstrap interval; the values are kept for comparisons.

        Args:
            values: float [n], in prompt order; bool for hits, whose mean is a share.
            backend: software and weights, with version.
            network: part of the result's name.
            unquantized: the unquantized model's values; gives `delta`.
        """
        name = self.full_name(network)
        if values.shape != (len(evaluation.images),):
            raise EvalError(f"{name} has values of shape {values.shape} for {len(evaluation.images)} pictures")
        evaluation.per_image[name] = [encode_float(float(v)) for v in values]
        interval = mean_interval(values, evaluation.counts)
        result = self.result(float(np.mean(values)), len(values), interval, backend=backend, network=network)
        if unquantized is None:
            return result
        evaluation.per_image_unquantized[name] = [encode_float(float(v)) for v in unquantized]
        gaps = values.astype(np.float64) - unquantized
        delta_interval = mean_interval(gaps, evaluation.counts)
        if delta_interval is not None and values.dtype == unquantized.dtype == bool:
            delta_interval = share_difference_interval(values, unquantized)
        return replace(result, delta=float(gaps.mean()), delta_interval=delta_interval)


def split_name(name: str) -> tuple[str, str]:
    """A result's name as metric and network.

    >>> split_name("fid_ref[inception]"), split_name("psnr")
    (('fid_ref', 'inception'), ('psnr', ''))
    """
    metric, _, network = name.partition("[")
    return metric, network.removesuffix("]")
