"""What no file can hold, and examples that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("onnxscript")

from segquant import QuantizationError, export_onnx, presets, quantize_
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
    with pytest.raises(QuantizationError, match=r"tensorrt cannot hold ada \(tensorrt takes zero points of 0 alone"):
        export_onnx(model, tmp_path / "out", (), EXAMPLE, profile="tensorrt")
    assert not list(tmp_path.iterdir())


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
