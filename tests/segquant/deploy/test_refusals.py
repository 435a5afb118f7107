"""What no file can hold, and examples that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("onnxscript")

from segquant import QuantizationError, QuantScheme, QuantSpec, export_onnx, presets, quantize_
from segquant.deploy.onnx.forms import PROFILES, why_not
from segquant.deploy.run import load_exported
from tests.segquant.support import BLOCK_SEGMENTS, Block, block_batches


def quantized(precision: str = "w8a8", **settings: object) -> nn.Module:
    return quantize_(Block(), presets.rtn(precision, **settings), block_batches(2, seed=1), BLOCK_SEGMENTS)


EXAMPLE = block_batches(1, seed=2)[0]


def test_layers_that_a_profile_cannot_hold_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        QuantizationError, match=r"ort cannot hold ada \(ort multiplies no fp8.*and 1 more; rest='float'"
    ):
        export_onnx(quantized("fp8"), tmp_path / "out", (), EXAMPLE)
    model = quantized(dualscale=True, negative="zero_point")
    with pytest.raises(
        QuantizationError, match=r"tensorrt cannot hold ada \(tensorrt takes zero points of 0 alone; deploy="
    ):
        export_onnx(model, tmp_path / "out", (), EXAMPLE, profile="tensorrt")
    assert not list(tmp_path.iterdir())


WEIGHTS: dict[tuple[str, str], str] = {
    ("ort", "nvfp4"): "ort multiplies no fp4_e2m1; use w8a8",
    ("tensorrt", "mxfp6"): "tensorrt multiplies no fp6_e2m3; use fp8",
    ("openvino", "fp8_dynamic"): "openvino multiplies no fp8; use w8a8, or profile='tensorrt'",
    ("tensorrt", "fp8_dynamic"): "fp8 needs weights and static inputs in one piece, both fp8; use the precision fp8 "
    "without seglinear",
    ("ort", "mxint8"): "ort takes scales of inputs in float32, and these are e8m0",
    ("ort", "nf4"): "ort has no nf4; int4 is the nearest",
    ("openvino", "q4_1"): "openvino has no weights that count from a least value, as uint4 with scale_dtype 'q1' does; "
    "int4 is the nearest",
    ("tensorrt", "w8a8_asym"): "tensorrt takes zero points of 0 alone; int8 is the nearest",
    ("tensorrt", "w4a8_asym"): "tensorrt takes zero points of 0 alone; int8 inputs are the nearest",
    ("tensorrt", "q4_0"): "tensorrt takes positive scales alone, and those of scale_dtype 'q0' are not; use float16",
    ("ort", "w8a8_asym"): "ort has no integer convolutions with zero points of weights; use w8a8, or "
    "profile='openvino'",
}


@pytest.mark.parametrize(("profile", "precision"), WEIGHTS)
def test_formats_that_a_profile_has_not_are_named(profile: str, precision: str) -> None:
    reason, convolution = WEIGHTS[profile, precision], "convolutions" in WEIGHTS[profile, precision]
    scheme = QuantScheme(QuantSpec("nf4", "group", 32), None) if precision == "nf4" else precision
    module: nn.Module = nn.Conv2d(32, 8, 1) if convolution else nn.Linear(32, 8)
    x = torch.randn(2, 32, 4, 4) if convolution else torch.randn(2, 32)
    (layer,) = quantize_(nn.Sequential(module), presets.rtn(scheme, convolutions=True), [(x,)], {})
    assert why_not(layer, PROFILES[profile]) == reason


FLOATS = {"q4_1": 4.0, "fp8": 1.0}
"""Bytes a weight where it is left in float: of a constant, or of codes that DequantizeLinear reads."""


@pytest.mark.parametrize("precision", FLOATS)
def test_what_is_left_in_float_has_the_weight_of_the_codes(precision: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (layer,) = model = quantize_(nn.Sequential(nn.Linear(64, 16)), presets.rtn(precision), [(torch.randn(8, 64),)], {})
    x = torch.randn(3, 64)
    written = export_onnx(model, tmp_path / "out", (x,), rest="float")
    assert set(written.layers.values()) == {"float"} and round(written.float_bytes / (64 * 16)) == FLOATS[precision]
    found = load_exported(tmp_path / "out")(x).output
    assert (found - nn.functional.linear(x, layer.weight, layer.bias)).abs().max() < 1e-5


def test_arguments_that_are_none(tmp_path: Path) -> None:
    model = quantized()
    with pytest.raises(QuantizationError, match="no profile 'openvin'; nearest: openvino"):
        export_onnx(model, tmp_path / "out", (), EXAMPLE, profile="openvin")
    with pytest.raises(QuantizationError, match="rest='skip'"):
        export_onnx(model, tmp_path / "out", (), EXAMPLE, rest="skip")
    with pytest.raises(QuantizationError, match="does not take these example arguments"):
        export_onnx(model, tmp_path / "out", (), {"y": torch.zeros(1)})
    with pytest.raises(QuantizationError, match="no quantized layer"):
        export_onnx(Block(), tmp_path / "out", (), EXAMPLE)
    with pytest.raises(QuantizationError, match=r"call model.float\(\) first"):
        export_onnx(nn.Sequential(nn.LayerNorm(32).half(), model.up), tmp_path / "out", (torch.zeros(2, 32),))
    with pytest.raises(QuantizationError, match="the example's x is torch.float16"):
        export_onnx(model, tmp_path / "out", (), {**EXAMPLE, "x": EXAMPLE["x"].half()})
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(QuantizationError, match="exists and is no export"):
        export_onnx(model, tmp_path / "taken", (), EXAMPLE)
