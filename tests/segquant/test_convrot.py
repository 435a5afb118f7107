"""ConvRot against the arithmetic that its papers and ComfyUI define, written out in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import segquant
from segquant import Method, QuantLinear, export_onnx, presets, quantize_, set_backend_
from segquant.deploy.plain import why_not_plain
from segquant.deploy.run import load_exported
from segquant.numerics.layout import Layout
from segquant.optimizers import Hadamard
from tests.segquant.support import tensor

H4 = np.array([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], dtype=np.float64)


class Unsigned(Hadamard):
    """Sylvester's matrix without random signs."""

    name = "unsigned_of_test_convrot"

    def fit(self, layout: Layout, seed: int, device: torch.device) -> dict[str, Tensor]:
        return {"rotation_signs": torch.ones(layout.in_features, dtype=torch.int8)}


def turned(x: np.ndarray, group: int) -> np.ndarray:
    """Groups of the last dimension times the normalized Kronecker power of H4."""
    matrix = np.ones((1, 1))
    while len(matrix) < group:
        matrix = np.kron(matrix, H4)
    return (x.reshape(*x.shape[:-1], -1, group) @ (matrix / group**0.5)).reshape(x.shape)


def int8(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales by row, amax / 127."""
    scale = np.abs(x).max(-1, keepdims=True) / 127
    return np.clip(np.rint(x / scale), -128, 127), scale


@pytest.mark.parametrize("width, group", [(512, 256), (768, 256), (320, 64), (48, 16), (20, 4), (30, 1)])
def test_int8_is_rows_of_weights_and_tokens_of_inputs_rotated_in_groups(width: int, group: int) -> None:
    """Groups of 256, or of the largest power of four that divides the layer."""
    linear, x = nn.Linear(width, 24), tensor(7, width, seed=1)
    x[:, 3] *= 30
    layer = QuantLinear.from_float(linear, presets.convrot())
    weight, bias = linear.weight.detach().double().numpy(), linear.bias.detach().double().numpy()
    codes, scale = int8(turned(weight, group))
    assert (np.abs(layer.codes.numpy() - codes) <= 1).all() and (layer.codes.numpy() == codes).mean() > 0.999
    given, given_scale = int8(turned(x.double().numpy(), group))
    expected = (given @ codes.T) * given_scale * scale.T + bias
    error = np.abs(layer(x).detach().double().numpy() - expected).max() / np.abs(expected).max()
    assert error < 2e-3  # codes at a tie may differ by one
    assert layer.layout.weight_spec.granularity == "channel" and not layer.layout.dual[0]


def test_an_outlier_is_spread_and_what_channels_have_in_common_is_not_gathered() -> None:
    """Sylvester's matrix gathers a constant in one channel, the regular one spreads it like all else."""
    linear, x = nn.Linear(256, 64), tensor(50, 256, seed=4)
    outlier = x.clone()
    outlier[:, 7] *= 60

    def error(method: Method, x: Tensor) -> float:
        with torch.no_grad():
            return float((QuantLinear.from_float(linear, method)(x) - linear(x)).norm())

    assert error(presets.convrot(), outlier) < 0.5 * error(presets.rtn("w8a8_dynamic"), outlier)
    sylvester = Method.of("m", "w8a8_dynamic", rotate=Unsigned())
    assert error(presets.convrot(), x + 8) < 0.5 * error(sylvester, x + 8)


def test_it_takes_other_precisions_groups_and_gptq() -> None:
    paper = presets.convrot("w4a4", rotation_group=64)
    assert paper.rotation is not None and paper.rotation.transform.group == 64  # type: ignore[attr-defined]
    assert presets.convrot(calibrator="gptq").value("calibrator") == "gptq"
    with pytest.raises(ValueError, match="its size is 4, 16, 64, 256 …, not 100"):
        presets.convrot(rotation_group=100)


def batches() -> list[tuple[Tensor]]:
    return [(tensor(6, 64, seed=seed),) for seed in range(4)]


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    quantized = quantize_(model(), presets.convrot(), batches())
    segquant.save_quantized(quantized, tmp_path / "model")
    loaded = segquant.load_quantized(tmp_path / "model", model())
    assert torch.equal(loaded(*batches()[0]), quantized(*batches()[0]))
    assert loaded[0].layout.transform("regular_rotation") is not None


@pytest.mark.slow  # tracing takes seconds
def test_engines_run_it_and_other_tools_say_that_they_cannot(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    quantized = quantize_(model(), presets.convrot(), batches())
    assert why_not_plain(quantized[0]) == "its input is rotated in groups"  # what torchao's and ComfyUI's files tell
    export_onnx(quantized, tmp_path / "out", batches()[0])
    found = load_exported(tmp_path / "out")(*batches()[0]).output
    expected = quantized(*batches()[0])
    assert float((found - expected).norm() / expected.norm()) < 2e-3


@pytest.mark.parametrize("width", [512, 768])
def test_it_is_what_comfyui_s_own_package_does(width: int) -> None:
    tensor_package = pytest.importorskip("comfy_kitchen").tensor
    linear, x = nn.Linear(width, 24), tensor(5, width, seed=2)
    layer = QuantLinear.from_float(linear, presets.convrot())
    quantize = tensor_package.TensorWiseINT8Layout.quantize
    codes, params = quantize(linear.weight.detach(), is_weight=True, per_channel=True, convrot=True)
    assert float((codes == layer.codes).float().mean()) > 0.999 and params.convrot_groupsize == 256
    torch.testing.assert_close(params.scale.flatten(), layer.weight_scale.flatten())
    weight = tensor_package.QuantizedTensor(codes, "TensorWiseINT8Layout", params)
    with torch.no_grad():
        theirs = nn.functional.linear(x, weight, linear.bias)
        torch.testing.assert_close(theirs, layer(x), rtol=0, atol=2e-3 * float(theirs.abs().max()))


def test_the_kernels_of_a_cpu_run_it_as_the_reference_does() -> None:
    quantized = quantize_(model(), presets.convrot(), batches())
    expected = quantized(*batches()[0])
    set_backend_(quantized, "auto")
    found = quantized(*batches()[0])
    assert float((found - expected).norm() / expected.norm()) < 2e-3
