"""A metric: how pictures are judged."""

import numpy as np
from PIL import Image

from segquant_bench.eval import EvalResult, Evaluation, Metric, register_metric


def _brightness(evaluation: Evaluation) -> EvalResult:
    values = np.array([np.asarray(Image.open(path), dtype=np.float64).mean() for path in evaluation.images])
    return BRIGHTNESS.per_picture(evaluation, values, backend="numpy")


BRIGHTNESS = register_metric(Metric("brightness", "higher", _brightness, unit="of 255"))
