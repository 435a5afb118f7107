"""Weights of every way to keep scales, with zero points and with least values, against loops in float64."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from segquant import PRECISIONS, QuantScheme, QuantSpec
from segquant.numerics import functional as F
from segquant.numerics.fake_quant import dequantize_weight, expand_weight_scale, round_weight, store_codes
from segquant.numerics.layout import Layout
from segquant.numerics.weight_grid import WeightScales, offset_scales, read_scales, scale_buffers, symmetric_scales
from segquant.ranges import Amax
from tests.segquant import decoding
from tests.segquant.support import tensor

KEPT = ("float32", "bfloat16", "float16", "e8m0", "e4m3")
UNSIGNED = [
    *(QuantSpec(f"uint{n}", "group", 16, scale_dtype=kept) for n in range(2, 9) for kept in ("float32", "q1", "k6")),
    *(QuantSpec("uint4", "group", 16, scale_dtype=kept) for kept in (*KEPT[1:], "k4", "k8")),
    QuantSpec("uint8", "channel"), QuantSpec("uint5", "tensor", scale_dtype="bfloat16"),
]  # fmt: skip
WEIGHTS = {name: scheme.weight for name, scheme in PRECISIONS.items() if scheme.weight is not None}
ROWS, WIDTH = 6, 512


def said(spec: QuantSpec) -> str:
    return f"{spec.dtype}-{spec.granularity}-{spec.scale_dtype}"


def layout_of(spec: QuantSpec, rows: tuple[int, ...] = (ROWS,), branches: tuple[int, ...] = (ROWS,)) -> Layout:
    columns = (WIDTH,)
    return Layout(WIDTH, ROWS, False, QuantScheme(spec, None), rows, columns, (False,), branches)


def weights() -> dict[str, Tensor]:
    """Weights [ROWS, WIDTH] of several kinds."""
    normal = tensor(ROWS, WIDTH, seed=3)
    some = normal.clone()
    some[1, :256] = 0  # whole blocks of nothing beside others
    some[2, 16:32] = 0.25
    some[3] = some[3].abs() + 5  # far from zero, on one side
    some[4] = -some[4].abs() * 1e-3
    return {
        "normal": normal, "uneven": some, "positive": normal.abs() + 0.1, "negative": -normal.abs() - 0.1,
        "constant": torch.full_like(normal, -1.5), "nothing": torch.zeros_like(normal),
        "tiny": normal * 1e-30, "denormal": normal * 1e-41,
    }  # fmt: skip


def rounded(spec: QuantSpec, weight: Tensor) -> tuple[Layout, WeightScales, dict[str, Tensor]]:
    """A weight rounded to nearest, as the buffers of a layer."""
    layout = layout_of(spec)
    rows, columns = layout.weight_rows, layout.weight_columns
    scales = Amax().weight_scales(weight, spec, rows, columns)
    scale = expand_weight_scale(scales.scale, rows, columns)
    offset = 0 if scales.offset is None else expand_weight_scale(scales.offset, rows, columns)
    return layout, scales, {**scales.stored, "codes": store_codes(F.quantize(weight - offset, scale, spec.dtype), spec)}


def blocks_of(layout: Layout, weight: Tensor) -> list[tuple[int, int, np.ndarray]]:
    """Row and column of every block, with its numbers in float64."""
    found, top = [], 0
    for row, height in enumerate(layout.weight_rows):
        cut = weight[top : top + height].split(layout.weight_columns, 1)
        found += [(row, column, block.double().numpy()) for column, block in enumerate(cut)]
        top += height
    return found


def step_of(kept: str) -> float:
    """By how much a scale of a dtype may be off: half a last place, of powers of two up to a half."""
    return {"float32": 1e-6, "bfloat16": 2**-8, "float16": 2**-11, "q0": 2**-11, "q1": 2**-11, "e4m3": 2**-4}.get(
        kept, 1
    )


@pytest.mark.parametrize("kind", weights())
@pytest.mark.parametrize("spec", [*WEIGHTS.values(), *UNSIGNED], ids=said)
def test_the_buffers_hold_the_weight_that_was_rounded(spec: QuantSpec, kind: str) -> None:
    weight = weights()[kind]
    layout, scales, buffers = rounded(spec, weight)
    assert {name: (tuple(t.shape), t.dtype) for name, t in buffers.items()} == layout.buffers()
    exact = decoding.weight_of(layout, buffers)
    found = dequantize_weight(layout, buffers)
    # code · scale and least are added in float32
    size = max(np.abs(exact).max(), float(weight.abs().max()))
    assert np.abs(found.double().numpy() - exact).max() <= 4e-7 * size + 1e-44
    assert torch.isfinite(found).all()
    again = read_scales(spec, buffers, len(layout.weight_columns), (len(layout.weight_rows),))
    for one, other in ((scales.scale, again.scale), (scales.zero, again.zero), (scales.least, again.least)):
        assert (one is None and other is None) or torch.equal(one, other)
    nearest = round_weight(weight, scales, layout.weight_rows, layout.weight_columns, spec.dtype)
    assert (nearest - found).abs().max() <= 1e-6 * size + 1e-44
    if kind == "nothing":
        assert bool((found == 0).all())


@pytest.mark.parametrize("kind", ["normal", "uneven", "positive", "negative", "constant"])
@pytest.mark.parametrize("spec", [spec for spec in UNSIGNED if spec.scale_dtype in ("float32", "q1")], ids=said)
def test_offsets_against_brute_force(spec: QuantSpec, kind: str) -> None:
    weight = weights()[kind]
    layout, scales, buffers = rounded(spec, weight)
    codes = decoding.codes_of(layout, buffers)
    levels = 2**spec.bits - 1
    for row, column, block in blocks_of(layout, weight):
        scale = float(scales.scale[row, column])
        if scales.zero is not None:
            above, below = max(block.max(), 0), max(-block.min(), 0)
            if above + below > 0:
                assert scale == pytest.approx((above + below) / levels, rel=1e-6)
            zero = float(scales.zero[row, column])
            assert zero == min(max(round(below / scale), 0), levels)
            ratio, expected = block / scale, np.clip(np.round(block / scale) + zero, 0, levels)
        else:
            least = float(np.float16(block.min()))
            assert scales.least is not None and float(scales.least[row, column]) == least
            if block.max() > block.min():
                assert scale == float(np.float16(np.float32((block.max() - block.min()) / levels)))
            ratio = (block - least) / scale
            expected = np.clip(np.round(ratio), 0, levels)
        width = layout.weight_columns[0]
        height = len(block)
        mine = codes[row * height : (row + 1) * height, column * width : (column + 1) * width]
        tied = np.abs(np.abs(ratio % 1) - 0.5) < 1e-3  # which float32 may put on either side
        assert (np.abs(mine - expected) <= tied).all()


@pytest.mark.parametrize("spec", [spec for spec in UNSIGNED if spec.scale_dtype[0] == "k"], ids=said)
def test_super_blocks_keep_scales_and_least_values_by_their_formula(spec: QuantSpec) -> None:
    weight = weights()["uneven"]
    layout, scales, _ = rounded(spec, weight)
    levels, top = 2**spec.bits - 1, 2 ** int(spec.scale_dtype[1]) - 1
    assert scales.least is not None
    for row in range(ROWS):
        for first in range(0, WIDTH // 16, 16):
            blocks = weight[row].view(-1, 16)[first : first + 16].double().numpy()
            low = (-blocks.min(1)).clip(0, None)  # what is above zero counts from zero
            width = blocks.max(1) + low
            for kept, wanted in ((scales.scale, width / levels), (-scales.least, low)):
                whole = float(np.float16(np.float32(wanted.max() / top)))
                codes = np.round(wanted / whole).clip(0 if kept is not scales.scale else 1, top) if whole else wanted
                found = kept[row, first : first + 16].double().numpy()
                used = width > 0
                assert np.allclose(found[used], np.where(whole, codes * whole, 0)[used], rtol=2e-6)


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_weight_is_within_a_step_of_its_grid(name: str) -> None:
    """Independently of how scales were chosen: no error is larger than the widest gap around the weight allows."""
    spec, weight = WEIGHTS[name], weights()["normal"]
    layout, scales, buffers = rounded(spec, weight)
    exact = decoding.weight_of(layout, buffers)
    low, high = decoding.low_and_high(spec.dtype)
    known = np.unique(decoding.nearest(np.linspace(low, high, 20001), spec.dtype))
    gap = np.diff(known).max()
    for row, column, block in blocks_of(layout, weight):
        scale = abs(float(scales.scale[row, column]))
        height, width = len(block), layout.weight_columns[0]
        mine = exact[row * height : (row + 1) * height, column * width : (column + 1) * width]
        # clipped where the scale was rounded down: of powers of two and of codes of scales by up to a step of those
        clipped = step_of(spec.scale_dtype) * np.abs(block).max() if spec.scale_dtype[0] != "k" else 8 * scale
        if spec.scale_dtype == "e8m0":
            clipped = (2 ** np.ceil(np.log2(high)) - high) * scale
        reach = gap if spec.scale_dtype == "q0" else gap / 2  # one of the extremes has no code of its own
        assert np.abs(mine - block).max() <= reach * scale * (1 + 1e-5) + clipped


@pytest.mark.parametrize("scale_dtype", KEPT)
@pytest.mark.parametrize("dtype", ["int8", "int3", "uint4", "fp4_e2m1", "nf4"])
@pytest.mark.parametrize("rows", [(ROWS,), (2, 4)])
def test_one_scale_of_a_tensor_or_segment(dtype: str, scale_dtype: str, rows: tuple[int, ...]) -> None:
    spec, weight = QuantSpec(dtype, scale_dtype=scale_dtype), weights()["normal"]
    layout = layout_of(spec, rows)
    scales = Amax().weight_scales(weight, spec, layout.weight_rows, layout.weight_columns)
    assert scales.scale.shape == (len(rows), 1)
    apart = [Amax().weight_scales(part, spec, (len(part),), layout.weight_columns) for part in weight.split(rows)]
    if scale_dtype != "e4m3":  # whose second scale is that of both
        assert torch.equal(scales.scale, torch.cat([each.scale for each in apart]))


def test_the_extreme_of_a_q0_block_is_exact_and_has_the_lowest_code() -> None:
    spec = QuantSpec("int4", "group", 16, scale_dtype="q0")
    weight = torch.round(weights()["normal"] * 64) / 64  # multiples of which float16 has an eighth
    layout, scales, buffers = rounded(spec, weight)
    codes, exact = decoding.codes_of(layout, buffers), decoding.weight_of(layout, buffers)
    for row, column, block in blocks_of(layout, weight):
        place = np.abs(block[0]).argmax()
        assert codes[row, column * 16 + place] == -8
        assert exact[row, column * 16 + place] == block[0, place]
        assert np.sign(float(scales.scale[row, column])) == -np.sign(block[0, place])


def test_zero_is_exact_wherever_zero_is_a_code() -> None:
    """Padding and pruned weights stay zero: in all formats but those that count from a rounded least value."""
    weight = weights()["normal"]
    weight[:, ::5] = 0
    for spec in (*WEIGHTS.values(), *UNSIGNED):
        layout, scales, buffers = rounded(spec, weight)
        if scales.least is None:
            assert bool((dequantize_weight(layout, buffers)[:, ::5] == 0).all()), spec


def test_blocks_of_nothing_do_not_count_for_what_others_share() -> None:
    """A scale of one of an empty block would be the largest there is, and cost the others all their precision."""
    weight = weights()["normal"] * 1e-4
    empty = weight.clone()
    empty[:, :64] = 0
    for dtype, kept in itertools.product(("int4", "uint4"), ("e4m3", "k4", "k6", "k8")):
        spec = QuantSpec(dtype, "group", 16, scale_dtype=kept)
        errors = []
        for values in (weight, empty):
            layout, scales, buffers = rounded(spec, values)
            assert float(scales.scale.max()) < 1e-3
            errors.append(float((dequantize_weight(layout, buffers) - values)[:, 64:].norm()))
        assert errors[1] < 1.1 * errors[0]


def test_branches_are_stored_below_each_other() -> None:
    weight = weights()["normal"] * torch.tensor([1.0, 1, 1, 50, 50, 50])[:, None]
    for spec in (*WEIGHTS.values(), *UNSIGNED):
        if spec.granularity == "tensor":
            continue
        layout = layout_of(spec, (3, 3), (3, 3))
        parts = [Amax().weight_scales(part, spec, (1, 1, 1), layout.weight_columns) for part in weight.split(3)]
        stored = {name: torch.cat([each.stored[name] for each in parts]) for name in parts[0].stored}
        shapes = scale_buffers(spec, ROWS, len(layout.weight_columns), 2)
        assert {name: (tuple(t.shape), t.dtype) for name, t in stored.items()} == shapes
        read = read_scales(spec, stored, len(layout.weight_columns), (3, 3))
        assert torch.equal(read.scale, torch.cat([each.scale for each in parts]))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("kept", ["float32", "bfloat16"])
def test_a_zero_point_never_loses_to_a_symmetric_grid_of_one_sided_weights(bits: int, kept: str) -> None:
    weight = weights()["positive"]
    errors = []
    for dtype in (f"int{bits}", f"uint{bits}"):
        layout, _, buffers = rounded(QuantSpec(dtype, "group", 16, scale_dtype=kept), weight)
        errors.append(float((dequantize_weight(layout, buffers) - weight).norm()))
    assert errors[1] < 0.7 * errors[0]


def test_scales_given_by_hand_become_those_that_are_kept() -> None:
    """`symmetric_scales` and `offset_scales` take any range's numbers."""
    scale = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    used = torch.tensor([[True, True, False, True]])
    for kept in KEPT:
        found = symmetric_scales(QuantSpec("int4", "group", 16, scale_dtype=kept), scale, used)
        assert torch.equal(found.scale[:, 2], found.scale[:, 0]) or kept == "float32"
        assert found.zero is None and found.offset is None
    above, below = torch.tensor([[3.0, 1.0, 0.0, 2.0]]), torch.tensor([[1.0, -0.5, 0.0, 6.0]])
    for kept in (*KEPT, "q1"):
        found = offset_scales(QuantSpec("uint4", "group", 16, scale_dtype=kept), above, below)
        assert found.offset is not None
        ends = found.offset, found.offset + 15 * found.scale
        low = -below if kept == "q1" else (-below).clamp_max(0)
        slack = 0.1 * (above - low)  # of a short scale, and of a zero point's whole number
        assert bool((ends[0] <= low + slack).all()) and bool((ends[1] >= above - slack).all())


def test_layouts_that_differ_in_scales_have_other_buffers() -> None:
    base = QuantSpec("uint4", "group", 32)
    found = [
        layout_of(replace(base, scale_dtype=kept)).buffers() for kept in ("float32", "bfloat16", "e4m3", "q1", "k6")
    ]
    assert all(one != other for one, other in itertools.combinations(found, 2))
    assert all(sorted(each)[0] == "codes" for each in found)
