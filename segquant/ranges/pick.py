"""Where scales come from: maximum, percentile or least squared error, for weights and for static inputs."""

from __future__ import annotations

from torch import Tensor

from segquant.method.spec import Method
from segquant.numerics import functional as F
from segquant.numerics.formats import QuantSpec
from segquant.ranges.amax import weight_scale
from segquant.ranges.mse import mse_input_range, mse_weight_scale
from segquant.ranges.percentile import percentile_range


def pick_weight_scale(
    weight: Tensor,
    method: Method,
    dtype: str,
    rows: tuple[int, ...],
    columns: tuple[int, ...],
    importance: Tensor | None = None,
) -> Tensor:
    """Scales [len(rows), len(columns)] of a weight; percentiles are for inputs, weights keep their maximum there.

    Args:
        importance: mean square of the input [in], which "mse" weighs columns by.
    """
    if method.ranges == "mse":
        return mse_weight_scale(weight, dtype, rows, columns, importance)
    return weight_scale(weight, dtype, rows, columns)


def pick_input_range(
    positive: Tensor,
    negative: Tensor,
    rows: Tensor | None,
    pieces: tuple[int, ...],
    dual: tuple[bool, ...],
    spec: QuantSpec,
    method: Method,
    importance: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Range of a static input per piece: largest value and magnitude of the smallest, [pieces] each.

    Args:
        positive, negative: per channel over everything seen, [in], in the space that is quantized. After a rotation
            nobody knows them: then those of the sampled rows stand in (a rotated input is close to normal, so
            the few values beyond cost little).
        rows: a sample [n, in], in the space that is quantized; None where neither rotation nor "percentile" nor
            "mse" asks for it.
        importance: squared column norms of the weight [in], which "mse" weighs channels by.
    """
    if method.rotate:
        assert rows is not None
        positive, negative = rows.amax(0).clamp_min(0), (-rows.amin(0)).clamp_min(0)
    if method.ranges == "percentile":
        assert rows is not None
        return percentile_range(rows, pieces, dual, method.percentile)
    above, below = F.piece_max(positive, pieces), F.piece_max(negative, pieces)
    if method.ranges == "mse":
        assert rows is not None
        return mse_input_range(rows, above, below, pieces, dual, spec, importance)
    return above, below


def needs_rows(method: Method) -> bool:
    """Whether `pick_input_range` looks at sampled rows."""
    return method.rotate or method.ranges != "amax"
