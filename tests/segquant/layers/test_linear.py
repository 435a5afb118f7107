"""QuantLinear against an independent float64 computation from its buffers; storage and dtype rules."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from segquant import PRECISIONS, InputStats, QuantizationError, QuantLinear, Segments, presets
from tests.segquant.support import EACH_KIND, EIGHT, SUPER_BLOCKS, brute_force, tensor

SEGMENTS = {
    "plain": Segments(),
    "output": Segments(output=(8, 40), activation="silu"),
    "input": Segments(input=(64, 128), input_activations=(None, "gelu")),
    "both": Segments(output=(16, 32), input=(128, 64), activation="gelu"),
}


def layer(width: int = 192, out: int = 48, bias: bool = True) -> tuple[nn.Linear, InputStats, torch.Tensor]:
    linear = nn.Linear(width, out, bias=bias)
    with torch.no_grad():
        linear.weight.copy_(tensor(out, width, seed=1) * torch.linspace(0.2, 3, out)[:, None])
    stats = InputStats("layer", width, keep_gram=True)
    for index in range(6):
        stats.update(inputs(20, width, index), index % 4)
    return linear, stats, inputs(7, width, 99)


def inputs(rows: int, width: int, seed: int) -> torch.Tensor:
    return nn.functional.silu(tensor(rows, width, seed=seed) * torch.linspace(0.1, 4, width))


@pytest.mark.parametrize("precision, segments", [
    *((name, cut) for name in EIGHT for cut in SEGMENTS),
    *((name, cut) for name in EACH_KIND for cut in ("plain", "input")),
    *((name, "both") for name in PRECISIONS if name not in EIGHT),
])  # fmt: skip
def test_forward_equals_brute_force(precision: str, segments: str) -> None:
    wide = 4 if precision in SUPER_BLOCKS else 1
    linear, stats, x = layer(192 * wide)
    # the paper's own search, by the rows that set the ranges, clips too much of so few
    searched = {"alpha_rows": "held_out", "headroom": "search"}
    method = presets.segquant_a(precision, rank=4, **(searched if precision in EIGHT else {"alpha": 0.5}))
    cut = SEGMENTS[segments]
    cut = replace(cut, input=cut.input and tuple(wide * size for size in cut.input))
    module = QuantLinear.from_float(linear, method, stats, cut)
    assert module.layout.columns == (cut.input or (192 * wide,)), "super-blocks and groups fit the pieces"
    before = x.clone()
    found = module(x.view(7, 1, 192 * wide)).view(7, 48)
    exact = brute_force(module, x)
    # a rounding tie may fall differently in float32; one step of one input is far below this
    tolerance = 3e-3 if precision == "fp8" else 1e-3
    assert (found - exact).norm() <= tolerance * exact.norm()
    narrow = min(spec.bits for spec in (method.scheme.weight, method.scheme.input) if spec is not None)
    bound = {2: 0.8, 3: 0.45, 4: 0.25, 5: 0.15, 6: 0.1, 8: 0.05}[narrow]
    assert (found - linear(x)).norm() <= bound * linear(x).norm()
    assert torch.equal(x, before)
    torch.testing.assert_close(module.weight.shape, linear.weight.shape)


def test_segments_shape_the_layout() -> None:
    linear, stats, _ = layer()
    found = QuantLinear.from_float(linear, presets.segquant_a("w8a8_tensor"), stats, SEGMENTS["both"]).layout
    assert (found.rows, found.columns, found.branches) == ((16, 32), (128, 64), (16, 32))
    assert found.dual == (True, True)
    mixed = QuantLinear.from_float(linear, presets.rtn("w8a8", dualscale=True), stats, SEGMENTS["input"]).layout
    assert mixed.columns == (192,) and mixed.dual == (False,)
    cut = presets.rtn("w8a8", seglinear=True, dualscale=True)
    assert QuantLinear.from_float(linear, cut, stats, SEGMENTS["input"]).layout.dual == (False, True)
    off = presets.segquant_a("w8a8", seglinear=False, dualscale=False)
    plain = QuantLinear.from_float(linear, off, stats, SEGMENTS["both"]).layout
    assert (plain.rows, plain.columns, plain.dual, plain.branches) == ((48,), (192,), (False,), (48,))


def test_groups_that_do_not_fit_the_segments_keep_the_input_whole() -> None:
    linear, stats, x = layer()
    module = QuantLinear.from_float(linear, presets.segquant_a("w4a8", rank=2), stats, Segments(input=(40, 152)))
    assert module.layout.columns == (192,)
    assert (module(x) - brute_force(module, x)).norm() <= 1e-3 * module(x).norm()


def test_storage_is_what_it_says() -> None:
    linear, stats, _ = layer(bias=False)
    eight = QuantLinear.from_float(linear, presets.rtn("w8a8"), stats)
    four = QuantLinear.from_float(linear, presets.rtn("w4a16"))
    low = QuantLinear.from_float(linear, presets.svdquant("w4a16", rank=4, alpha=0.5), stats)
    assert eight.weight_bytes() == 48 * 192 + 4 * 48 + 4
    assert four.weight_bytes() == 48 * 96 + 2 * 48 * 3
    assert low.weight_bytes() == four.weight_bytes() + 2 * 4 * (48 + 192) + 4 * 192


@pytest.mark.parametrize("precision", ["w8a8_tensor", "w4a8", "fp8", "w4a8_asym", "nvfp4", "mxfp6", "q4_1"])
def test_casting_the_module_keeps_codes_and_scales(precision: str) -> None:
    linear, stats, x = layer()
    module = QuantLinear.from_float(linear, presets.segquant_a(precision, rank=4), stats, SEGMENTS["output"])
    exact = module(x)
    cast = copy.deepcopy(module).to(torch.bfloat16)
    for name, buffer in module.named_buffers():
        if name == "bias":
            assert cast.bias.dtype == torch.bfloat16
        else:
            assert torch.equal(getattr(cast, name), buffer) and getattr(cast, name).dtype == buffer.dtype
    assert cast(x.bfloat16()).dtype == torch.bfloat16
    assert (cast(x) - exact).norm() < 1e-2 * exact.norm()


def test_state_dict_round_trip_drops_the_kept_weight() -> None:
    linear, stats, x = layer()
    module = QuantLinear.from_float(linear, presets.gptq("w4a8_channel"), stats)
    other = QuantLinear(module.layout)
    assert other(x).eq(0).all()
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), module(x))
    assert torch.equal(copy.deepcopy(module)(x), module(x))


@pytest.mark.parametrize("name", ["rtn", "smoothquant", "gptq", "segquant_a", "segquant_g"])
@pytest.mark.parametrize("precision", ["w8a8_tensor", "w8a8_dynamic"])
def test_degenerate_inputs_stay_finite(name: str, precision: str) -> None:
    linear = nn.Linear(8, 4)
    with torch.no_grad():
        linear.weight[:, 2] = 0
        linear.weight[1] = 0
    for x in (torch.zeros(6, 8), torch.full((6, 8), 3.0), torch.eye(8)[:3], tensor(1, 8)):
        stats = InputStats("layer", 8, keep_gram=True)
        stats.update(x, None)
        cut = Segments(output=(1, 2, 1), input=(1, 7), activation="silu")
        module = QuantLinear.from_float(linear, getattr(presets, name)(precision), stats, cut)
        assert torch.isfinite(module(x)).all() and torch.isfinite(module(torch.zeros(2, 8))).all()
        assert (module(x) - linear(x)).norm() < 0.05 * linear(x).norm() + 1e-6


def test_inputs_that_super_blocks_do_not_divide() -> None:
    linear, stats, _ = layer(width=192)
    with pytest.raises(
        QuantizationError, match="a.b: weight super-blocks of 256 do not divide its in_features 192; leave it out.*skip"
    ):
        QuantLinear.from_float(linear, presets.rtn("q4_k"), stats, name="a.b")
    wide, stats, x = layer(width=768)
    cut = Segments(input=(128, 640))  # whose groups of 32 would fit
    module = QuantLinear.from_float(wide, presets.rtn("q4_k", seglinear=True), stats, cut)
    assert module.layout.columns == (768,)
    assert (module(x) - brute_force(module, x)).norm() <= 1e-3 * module(x).norm()


def test_a_block_far_smaller_than_its_super_blocks_others_keeps_a_scale() -> None:
    """A scale whose code is zero would divide zeros by zero, and GPTQ would carry the NaN on."""
    linear, stats, x = layer(width=256, bias=False)
    with torch.no_grad():
        linear.weight[:, :32] *= 1e-6
        linear.weight[:, 3] = 0
    for precision in ("q2_k", "q3_k", "q4_k", "q6_k"):
        for method in (presets.rtn(precision), presets.gptq(precision)):
            module = QuantLinear.from_float(linear, method, stats)
            assert torch.isfinite(module(x)).all()
            assert (module(x) - linear(x)).norm() < 0.6 * linear(x).norm()


def test_errors_are_sentences_that_name_the_layer() -> None:
    linear, stats, _ = layer(width=48)
    with pytest.raises(
        QuantizationError, match="blocks.0.proj: weight groups of 32 do not divide its in_features 48.*skip"
    ):
        QuantLinear.from_float(linear, presets.rtn("w4a8"), stats, name="blocks.0.proj")
    with pytest.raises(QuantizationError, match="never called"):
        QuantLinear.from_float(linear, presets.rtn("w8a8"))
    with pytest.raises(QuantizationError, match="a.b: its segments do not fit"):
        QuantLinear.from_float(linear, presets.segquant_a("w8a8"), stats, Segments(output=(40, 9)), name="a.b")
    bare = InputStats("layer", 48)
    bare.update(tensor(4, 48), None)
    with pytest.raises(QuantizationError, match="gram=True"):
        QuantLinear.from_float(linear, presets.gptq("w8a8"), bare)
    with torch.no_grad():
        linear.weight[0, 0] = float("nan")
    with pytest.raises(QuantizationError, match="weight contains NaN"):
        QuantLinear.from_float(linear, presets.rtn("w8a8"), stats)
