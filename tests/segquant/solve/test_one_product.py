"""Layers whose signs share one grid and whose input pieces share one scale, against definitions written anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from segquant import (
    PRECISIONS,
    InputStats,
    Method,
    QuantLinear,
    QuantScheme,
    QuantSpec,
    Segments,
    load_quantized,
    presets,
    quantize_,
    save_quantized,
)
from segquant.method.parts import DEPLOY
from segquant.numerics.fake_quant import dequantize_weight
from segquant.numerics.input_grid import InputGrid
from segquant.transforms.chain import chain_of
from tests.segquant.support import BLOCK_SEGMENTS, Block, block_batches, brute_force, tensor

WIDTH, OUT = 96, 40
PIECES = Segments(output=(16, 24), input=(32, 64), input_activations=("silu", None))
WHOLE = Segments(activation="gelu")


def inputs(rows: int, seed: int, pieces: bool = True) -> Tensor:
    x = tensor(rows, WIDTH, seed=seed) * torch.linspace(0.3, 3, WIDTH)
    x[:, : 32 if pieces else WIDTH] = nn.functional.silu(x[:, : 32 if pieces else WIDTH])
    x[:, 32:] *= 5 if pieces else 1
    return x


def make(precision: str, segments: Segments, **fields: object) -> tuple[nn.Linear, InputStats, QuantLinear]:
    linear = nn.Linear(WIDTH, OUT).requires_grad_(False)
    with torch.no_grad():
        linear.weight.copy_(tensor(OUT, WIDTH, seed=1))
        linear.bias.copy_(tensor(OUT, seed=2))
    stats = InputStats("layer", WIDTH, keep_gram=True)
    for index in range(8):
        stats.update(inputs(24, index, segments is PIECES), index % 4)
    method = Method.of("m", precision, seglinear=True, dualscale=True, **fields)
    return linear, stats, QuantLinear.from_float(linear, method, stats, segments)


FORMS = {
    "zero_point": {"negative": "zero_point"},
    "shift": {"negative": "shift"},
    "fold": {"columns": "fold"},
    "cpu": {"deploy": "cpu"},
    "onnx": {"deploy": "onnx"},
    "tensorrt": {"deploy": "tensorrt"},
}
METHODS = {
    "plain": {},
    "smooth": {"optimizer": "smooth"},
    "svd": {"optimizer": "svd", "rank": 3, "iterations": 1, "calibrator": "gptq"},
    "gptq": {"calibrator": "gptq", "ranges": "mse", "bias_correction": True},
}


@pytest.mark.parametrize("segments", [PIECES, WHOLE], ids=["pieces", "whole"])
@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("precision", ["w8a8_tensor", "w8a8_dynamic", "w4a4", "w8a8_asym"])
def test_the_forward_equals_brute_force(precision: str, form: str, kind: str, segments: Segments) -> None:
    scheme = PRECISIONS[precision]
    if precision == "w4a4":  # groups that the pieces hold
        scheme = QuantScheme(replace(scheme.weight, group_size=16), replace(scheme.input, group_size=16))
    linear, _, module = make(scheme, segments, **FORMS[form], **METHODS[kind])  # type: ignore[arg-type]
    x = inputs(9, 99, segments is PIECES)
    exact, target = brute_force(module, x), linear(x)
    assert (module(x) - exact).norm() <= 2e-3 * exact.norm()
    assert (module(x) - target).norm() <= (0.35 if precision == "w4a4" else 0.04) * target.norm()
    if form in ("fold", "onnx", "tensorrt"):
        assert module.layout.columns == (WIDTH,)
    elif form == "cpu":  # whose kernel has no need of it
        assert module.layout.columns == (segments.input or (WIDTH,))
    assert any(module.layout.two_products) == (form == "fold" and not scheme.input.zero_point)
    shifts = module.layout.transform("shift") is not None
    assert shifts == (module.layout.negative == "shift") == (form in ("shift", "tensorrt") and scheme.static_input)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_zero_point_grid_covers_both_signs(dtype: str) -> None:
    grid = InputGrid((1, 1, 1), (True, True, False), QuantSpec(dtype), "zero_point")
    top = 255.0 if dtype == "int8" else 15.0
    scale, zero = grid.scales(torch.tensor([9.0, 0.0, 2.0]), torch.tensor([1.0, 3.0, 4.0]))
    torch.testing.assert_close(scale, torch.tensor([10 / top, 3 / top, 4 / (top // 2)]))
    assert zero.tolist() == [round(top / 10), top, (top + 1) / 2]
    ends = torch.tensor([[9.0, -3.0, -4.0], [-1.0, 0.0, 0.0], [90.0, 5.0, 90.0]])
    found = grid.quantize(ends, (scale, zero))
    assert found[1, 1:].tolist() == [0.0, 0.0], "zero is on the grid"
    assert ((found[:2] - ends[:2]).abs() <= scale).all()
    assert found[2].tolist() == pytest.approx(
        [(top - float(zero[0])) * float(scale[0]), 0.0, (top // 2) * float(scale[2])]
    )
    nothing = grid.scales(torch.zeros(3), torch.zeros(3))
    assert nothing[0].tolist() == [1.0, 1.0, 1.0]
    assert grid.quantize(torch.zeros(2, 3), None).tolist() == [[0.0] * 3] * 2


def test_without_signs_apart_every_form_is_the_same() -> None:
    plain = Segments(output=(16, 24))
    found = [make("w8a8", plain, **form)[2].state_dict() for form in ({}, FORMS["zero_point"], FORMS["tensorrt"])]
    for other in found[1:]:
        assert found[0].keys() == other.keys()
        assert all(torch.equal(found[0][key], other[key]) for key in other)


@pytest.mark.parametrize("optimizer", ["smooth", "svd"])
def test_a_shift_is_made_up_for_with_the_rounded_weight(optimizer: str) -> None:
    linear, stats, module = make("w8a8", WHOLE, negative="shift", optimizer=optimizer, alpha=1.0)
    layout, tensors, x = module.layout, module.tensors(), inputs(50, 7, False)
    chain = chain_of(layout, tensors, 0)
    assert [transform.name for transform in layout.transforms][:2] == ["smoothing", "shift"]
    rows, beside = chain.run(x)
    product = rows @ dequantize_weight(layout, tensors).T + sum(beside)
    torch.testing.assert_close(product + linear.bias, x @ module.weight.T + linear.bias, rtol=1e-4, atol=1e-3)
    smoothed = stats.sample / module.smooth[0]
    middle = (smoothed.max() + smoothed.min()) / 2
    assert float(middle) > 0.1 * float(smoothed.max()), "the case would show nothing"
    # the range is that of all rows, of which the sample is a part
    torch.testing.assert_close(module.shift[0], middle.expand(WIDTH), rtol=0.2, atol=0.0)
    symmetric = make("w8a8", Segments(), optimizer=optimizer, alpha=1.0)[2]
    assert float(module.input_scale[0, 0]) < 0.75 * float(symmetric.input_scale[0, 0])


def test_folded_pieces_have_one_range() -> None:
    _, stats, module = make("w8a8", PIECES, columns="fold", optimizer="smooth")
    seen = torch.cat([inputs(24, index) for index in range(8)])
    for branch in range(len(module.layout.branches)):
        pieces = (seen / module.smooth[branch]).abs().split([32, 64], 1)
        peaks = [float(piece.max()) for piece in pieces]
        assert max(peaks) / min(peaks) < 2.01, "but for headroom of a factor of 2"
        assert float(module.input_scale[branch, 0]) * 127 >= max(peaks) * 0.999


def test_a_zero_point_beats_a_symmetric_grid_where_one_sign_rules() -> None:
    errors = {}
    for name, fields in {"dual": {}, **FORMS}.items():
        linear, _, module = make("w8a8", WHOLE, **fields)
        x = inputs(400, 50, False)
        errors[name] = float((module(x) - linear(x)).norm() / linear(x).norm())
    linear, _, module = make("w8a8", Segments())
    symmetric = float((module(x) - linear(x)).norm() / linear(x).norm())
    assert errors["zero_point"] < 0.75 * symmetric and errors["shift"] < 0.75 * symmetric
    assert errors["zero_point"] < 1.3 * errors["dual"]


@pytest.mark.parametrize("engine", DEPLOY)
def test_a_model_for_an_engine_saves_and_loads(tmp_path: Path, engine: str) -> None:
    method = presets.segquant_g("w8a8", deploy=engine)
    model, batches = Block(), block_batches(4, 1)
    quantize_(model, method, batches, BLOCK_SEGMENTS)
    layouts = [layer.layout for layer in model.modules() if isinstance(layer, QuantLinear)]
    assert any(any(layout.two_products) for layout in layouts) == (engine == "none")
    assert any(len(layout.columns) > 1 for layout in layouts) == (engine in ("none", "cpu"))
    save_quantized(model, tmp_path)
    again = load_quantized(tmp_path, Block())
    assert torch.equal(model(**batches[0]), again(**batches[0]))
    assert Method.from_dict(method.to_dict()) == method


def test_a_plain_layout_has_one_scale_for_everything() -> None:
    module = make("w8a8", PIECES, deploy="comfy", calibrator="gptq")[2]
    assert module.layout.columns == (WIDTH,) and module.layout.dual == (False,) and not module.layout.transforms
    assert module.layout.rows == (16, 24) and module.layout.second_scale is None


def test_refusals() -> None:
    with pytest.raises(ValueError, match="unknown negative 'zero'; .*zero_point"):
        presets.segquant_g("w8a8", negative="zero")
    with pytest.raises(ValueError, match="unknown deploy 'ort'"):
        presets.segquant_g("w8a8", deploy="ort")
    for deploy in ("onnx", "torchao"):
        with pytest.raises(ValueError, match="fp8 has no zero point; choose negative='dual'"):
            presets.segquant_g("fp8", deploy=deploy)
    with pytest.raises(ValueError, match=r"override 'a.\*': .*fp8 has no zero point; choose negative='dual'"):
        presets.segquant_g("w8a8", deploy="cpu", overrides={"a.*": {"precision": "fp8"}})
    assert presets.segquant_g("fp8", deploy="cpu").cuts.negative == "dual"
    assert presets.rtn("fp8", deploy="onnx").cuts.negative == "zero_point"  # no scale per sign, no zero point
    assert presets.segquant_g("w8a8", deploy="cpu", negative=None).cuts.negative == "zero_point"
    assert presets.segquant_g("w8a8", deploy="cpu", negative="dual").cuts.negative == "dual"
    with pytest.raises(ValueError, match="'adaround' still changes; choose negative='zero_point'"):
        Method.of("m", "w8a8", calibrator="adaround", negative="shift")
    with pytest.raises(ValueError, match="override"):
        presets.segquant_g("w8a8", overrides={"*": {"columns": "foldd"}})
