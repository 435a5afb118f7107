from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from segquant_bench.eval.metrics.metric import Metric
from segquant_bench.eval.results import EvalResult

if TYPE_CHECKING:
    from segquant_bench.eval.metrics.evaluation import Evaluation

log = logging.getLogger(__name__)


def _psnr(evaluation: Evaluation) -> EvalResult:
    from segquant_bench.eval.metrics.networks import pairs  # torch: only where pictures are judged

    values = pairs.psnr(evaluation.pairs)
    identical = np.isinf(values)
    finite = np.where(identical, pairs.psnr_ceiling(evaluation.images[0]), values)
    result = PSNR.per_picture(evaluation, finite, backend=pairs.torchmetrics_backend())
    if identical.all():
        return replace(result, value=float("inf"), interval=None)
    if identical.any():
        log.warning(
            "%d of %d pictures equal the unquantized model's; their PSNR counts as %.1f dB, the largest that "
            "8-bit pictures of this size can show", identical.sum(), len(values), finite.max(),
        )  # fmt: skip
    return result


def _ssim(evaluation: Evaluation) -> EvalResult:
    from segquant_bench.eval.metrics.networks import pairs  # torch: only where pictures are judged

    return SSIM.per_picture(evaluation, pairs.ssim(evaluation.pairs), backend=pairs.torchmetrics_backend())


PSNR = Metric("psnr", "higher", _psnr, unit="dB", against="reference", order=2, headline=True)
SSIM = Metric("ssim", "higher", _ssim, against="reference", order=3)
METRICS = (PSNR, SSIM)
