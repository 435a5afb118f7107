"""QuaRot's clipping search against a brute-force one in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from segquant.numerics import functional as F
from segquant.numerics.fake_quant import expand_weight_scale
from segquant.numerics.formats import QuantSpec
from segquant.ranges import Clip
from segquant.ranges.amax import weight_scale
from tests.segquant import decoding

CUTS = [((1,) * 6, (8,)), ((1,) * 6, (4, 4)), ((2, 4), (3, 5))]


def tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("rows, columns", CUTS)
@pytest.mark.parametrize("dtype", ["int4", "int3", "fp4_e2m1"])
@pytest.mark.parametrize("norm", [2.4, 1.0])
def test_scales_have_the_least_power_of_the_error(
    rows: tuple[int, ...], columns: tuple[int, ...], dtype: str, norm: float
) -> None:
    """Shares 1.00, 0.99 … 0.21 of the maximum, every input alike whatever its size (as GPTQ's and QuaRot's code)."""
    weight, high = tensor(6, 8), F.code_max(dtype)
    found = Clip(norm).weight_scale(weight, QuantSpec(dtype), rows, columns, tensor(8, seed=1).square())
    for i, top in enumerate(weight.split(rows)):
        for j, block in enumerate(top.split(columns, 1)):
            scales = [float(block.abs().max()) / high * (1 - step / 100) for step in range(80)]
            nearest = [torch.from_numpy(decoding.nearest((block / s).numpy(), dtype)) * s for s in scales]
            errors = [float((rounded - block).abs().pow(norm).sum()) for rounded in nearest]
            assert float(found[i, j]) == pytest.approx(scales[errors.index(min(errors))], rel=1e-12)


def test_a_weight_with_outliers_is_clipped_and_the_rest_is_nearer() -> None:
    weight = tensor(16, 64, seed=2)
    weight[:, 0] = 1.5 * weight.abs().amax(1)
    rows, columns = (1,) * 16, (64,)
    found = Clip().weight_scale(weight, QuantSpec("int4"), rows, columns)
    widest = weight_scale(weight, QuantSpec("int4"), rows, columns)
    assert bool((found < widest).any() and (found <= widest).all())
    wide = [expand_weight_scale(scale, rows, columns) for scale in (found, widest)]
    errors = [(F.fake_quantize(weight, scale, "int4") - weight)[:, 1:].square().sum() for scale in wide]
    assert errors[0] < 0.9 * errors[1]


def test_zero_points_have_clipped_ends_too() -> None:
    weight = tensor(4, 32, seed=3) + 1
    above, below = Clip().weight_extremes(weight, QuantSpec("uint4"), (1,) * 4, (32,))
    full = weight.amax(1, keepdim=True), (-weight).amax(1, keepdim=True)
    assert bool((above <= full[0]).all() and (below <= full[1].clamp_min(0)).all())
    assert bool((above < full[0]).any() or (below < full[1]).any())
