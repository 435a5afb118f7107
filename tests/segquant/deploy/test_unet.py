"""A UNet with quantized convolutions as a file, and the denoisers of the shipped pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
pytest.importorskip("diffusers")

import diffusers

from segquant import QuantizationError, Segments, export_onnx, presets, quantize_
from segquant.deploy.run import load_exported
from segquant.deploy.run import openvino as openvino_engine
from segquant.layers.layer import QuantLayer
from segquant_bench.pipelines.architectures import config_of
from segquant_bench.pipelines.architectures.inputs import example_inputs
from segquant_bench.pipelines.runtime.paths import ZOO
from tests.segquant.deploy.support import traced_once
from tests.segquant.deploy.test_export import error


def unet() -> nn.Module:
    torch.manual_seed(0)
    found: nn.Module = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2, cross_attention_dim=24, norm_num_groups=8, use_linear_projection=True,
    ).eval()  # fmt: skip
    return found


def call(batch: int, height: int, width: int, words: int, seed: int = 0) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    sample, text = torch.randn(batch, 4, height, width, generator=g), torch.randn(batch, words, 24, generator=g)
    return {"sample": sample, "timestep": torch.tensor(500), "encoder_hidden_states": text, "return_dict": False}


class Pair(nn.Module):
    """Two smoothed convolutions, of which one has a scale per sign; the output is named as the input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 8, 3, stride=2, padding=1, bias=False)

    def forward(self, output: Tensor, timestep: Tensor) -> Tensor:
        return self.second(nn.functional.silu(self.first(output))) * timestep


def test_a_pair_of_convolutions(tmp_path: Path) -> None:
    model, exact = Pair().eval(), Pair().eval()
    time = torch.tensor(0.5)  # of no dimensions, as UNets get it
    batches = [(torch.randn(2, 8, 6, 8, generator=torch.Generator().manual_seed(seed)), time) for seed in range(3)]
    segments = {"first": Segments(), "second": Segments(activation="silu")}
    method = presets.segquant_a("w8a8", alpha=0.5, convolutions=True)
    quantize_(model, method, batches[:2], segments)
    with traced_once():
        for engine in ("ort", "openvino"):
            export_onnx(model, tmp_path / engine, batches[0], profile=engine)
            running = load_exported(tmp_path / engine, engine)
            g = torch.Generator().manual_seed(9)
            for x in (batches[2][0], torch.randn(3, 8, 4, 10, generator=g), torch.randn(1, 8, 1, 3, generator=g)):
                with torch.no_grad():
                    found, ours, wanted = (each(x, time) for each in (running, model, exact))
                assert error(found.output, wanted) < 1.03 * error(ours, wanted), engine


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_convolutions_run_in_integers(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantize_(unet(), presets.rtn("w8a8", convolutions=True), [call(2, 8, 8, 5, seed) for seed in range(2)], {})
    export_onnx(model, tmp_path / "out", (), call(2, 8, 8, 5), profile=engine)
    running = load_exported(tmp_path / "out", engine)
    exact = unet()
    for inputs in (call(3, 12, 4, 7, seed=9), call(1, 8, 8, 1, seed=9)):
        with torch.no_grad():
            found, ours, wanted = (each(**inputs)[0] for each in (running, model, exact))
        assert error(found, wanted) < 1.03 * error(ours, wanted)
    with pytest.raises(QuantizationError, match=r"takes \[1….*, 4, 2… by 2, 2… by 2\]"):  # OpenVINO would cut the skip
        running(**call(1, 7, 8, 5))
    monkeypatch.setattr(openvino_engine, "products_are_exact", lambda: True)  # as on CPUs with VNNI
    products = load_exported(tmp_path / "out", engine).engine.products()
    assert products["int8"] == sum(isinstance(module, QuantLayer) for module in model.modules())
    attentions = sum("attn" in name and name.endswith("to_q") for name, _ in model.named_modules())
    assert products.get("float32", 0) <= 2 * attentions


SHIPPED = {
    "emoji_sd3": "SD3Transformer2DModel",
    "emoji_flux": "FluxTransformer2DModel",
    "emoji_sdxl": "UNet2DConditionModel",
}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ort", "openvino"])
@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_denoisers(name: str, engine: str, tmp_path: Path) -> None:
    part = "unet" if name == "emoji_sdxl" else "transformer"
    kind = getattr(diffusers, SHIPPED[name])
    exact = kind.from_pretrained(ZOO / name / part, dtype=torch.float32).eval()
    model = kind.from_pretrained(ZOO / name / part, dtype=torch.float32).eval()
    torch.manual_seed(0)
    batches = [{**drawn(model), "return_dict": False} for _ in range(3)]
    quantize_(model, presets.segquant_a("w8a8", alpha=0.5, deploy="onnx", convolutions=True), batches[:2])
    written = export_onnx(model, tmp_path / "out", (), batches[0], profile=engine)
    running = load_exported(tmp_path / "out", engine)
    with torch.no_grad():
        found, ours, wanted = (each(**batches[2])[0] for each in (running, model, exact))
    assert error(found, wanted) < 1.03 * error(ours, wanted)
    assert set(written.layers.values()) == {"int8"}
    if engine == "ort":
        assert running.engine.products()["int8"] >= len(written.layers)


def drawn(model: nn.Module) -> dict[str, Any]:
    """A call with a batch of two and random values."""

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(entry) for key, entry in value.items()}
        if not isinstance(value, Tensor):
            return value
        shape = [2 if index == 0 and size == 1 else size for index, size in enumerate(value.shape)]
        return torch.rand(shape) if value.dim() < 2 else torch.randn(shape)

    found: dict[str, Any] = filled(example_inputs(type(model).__name__, config_of(model), "cpu"))
    return found
