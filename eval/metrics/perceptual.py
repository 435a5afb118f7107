from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from segquant_bench.eval.metrics.backends import Backends, Network
from segquant_bench.eval.metrics.metric import Metric
from segquant_bench.eval.results import EvalResult

if TYPE_CHECKING:
    from segquant_bench.eval.metrics.evaluation import Evaluation
    from segquant_bench.eval.metrics.networks.effnet import EffNetLite0


def _find_lpips(backends: Backends) -> Path:
    from segquant_bench.eval.metrics.networks.pairs import lpips_weights  # torch: only where pictures are judged

    return lpips_weights(backends.lpips)


def _load_effnet(backends: Backends) -> EffNetLite0:
    from segquant_bench.eval.metrics.networks.effnet import load_effnet  # torch: only where pictures are judged

    return load_effnet(backends.device)


LPIPS_WEIGHTS = Network("lpips", _find_lpips, _find_lpips)
EFFNET = Network("effnet_lite0", _load_effnet)


def _lpips(evaluation: Evaluation) -> EvalResult:
    from segquant_bench.eval.metrics.networks import pairs  # torch: only where pictures are judged

    trunk = evaluation.backends.lpips
    values = pairs.lpips(evaluation.pairs, trunk, evaluation.backends.device)
    return LPIPS.per_picture(evaluation, values, backend=pairs.torchmetrics_backend(), network=trunk)


def _perceptual(evaluation: Evaluation) -> EvalResult:
    from segquant_bench.eval.metrics.networks import pairs  # torch: only where pictures are judged
    from segquant_bench.eval.metrics.networks.effnet import effnet_backend

    backends = evaluation.backends
    if evaluation.same_as_reference:
        values = np.zeros(len(evaluation.images))
    else:
        values = pairs.perceptual(evaluation.pairs, evaluation.network(EFFNET), backends.device, backends.batch_size)
    return PERCEPTUAL.per_picture(evaluation, values, backend=effnet_backend(), network=EFFNET.name)


LPIPS = Metric("lpips", "lower", _lpips, against="reference", networks=(LPIPS_WEIGHTS,), order=4)
PERCEPTUAL = Metric("perceptual", "lower", _perceptual, against="reference", networks=(EFFNET,), order=5)
METRICS = (LPIPS, PERCEPTUAL)
