"""What engines raise while they run, and inputs that they would take wrongly: one sentence each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

from segquant import QuantizationError, export_onnx, presets, quantize_
from segquant.deploy.onnx.manifest import Dimension, Input
from segquant.deploy.run import load_exported
from segquant.deploy.run.denoiser import _array
from tests.segquant.deploy.support import traced_once
from tests.segquant.serialize.saved_net import is_sentence


class Skip(nn.Module):
    """Halves and doubles the height, beside what it was: odd heights do not fit."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(16, 8)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        small = nn.functional.avg_pool2d(sample, 2)
        wide = nn.functional.interpolate(small, scale_factor=2.0, mode="nearest")
        if wide.shape[2:] != sample.shape[2:]:
            wide = nn.functional.interpolate(small, sample.shape[2:])
        found: Tensor = self.linear(torch.cat([wide, sample], 1).flatten(2).transpose(1, 2)) * timestep.float()
        return found


def _call(height: int = 8, timestep: Any = 500) -> dict[str, Any]:
    g = torch.Generator().manual_seed(height)
    return {"sample": torch.randn(2, 8, height, 8, generator=g), "timestep": torch.as_tensor(timestep)}


def _any_size(known: Input) -> Input:
    """As files said that were written before multiples were looked for."""
    return replace(known, dimensions=tuple(replace(each, multiple=1) for each in known.dimensions))


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    model = quantize_(Skip().eval(), presets.rtn("w8a8"), [_call()], {})
    with traced_once():
        for engine in ("ort", "openvino"):
            export_onnx(model, folder / engine, (), _call(), profile=engine)
    return folder


@pytest.mark.parametrize(("engine", "options"), [("ort", {}), ("openvino", {}), ("openvino", {"fixed": True})])
def test_sizes_that_the_graph_does_not_fit(exports: Path, engine: str, options: dict[str, Any]) -> None:
    running = load_exported(exports / engine, engine, threads=1, **options)
    with pytest.raises(
        QuantizationError, match=r"takes \[1…, 8, 2… by 2, 2… by 2\]; export it with an example of these sizes$"
    ):
        running(**_call(7))
    running.manifest = replace(running.manifest, inputs=[_any_size(each) for each in running.manifest.inputs])
    with pytest.raises(
        QuantizationError, match=rf"^{engine} cannot run the exported Skip with sample \[2, 8, 7, 8\], timestep \[\] \("
    ) as caught:
        running(**_call(7))
    assert is_sentence(caught.value) and "; give sizes like the example's, or" in str(caught.value)
    assert running(**_call(6))[0].shape == (2, 48, 8), "and goes on"


def test_whole_numbers_of_another_type(exports: Path) -> None:
    running = load_exported(exports / "ort", threads=1)
    assert torch.equal(running(**_call(timestep=500.0))[0], running(**_call())[0])
    for wrong in (500.5, float("nan"), float("inf"), 1e30):
        with pytest.raises(
            QuantizationError,
            match=r"^timestep is torch.float32, .* takes int64; round it, or export .* is torch.float32$",
        ):
            running(**_call(timestep=wrong))


@pytest.mark.parametrize("engine", ["ort", "openvino"])
@pytest.mark.parametrize("threads", [0, -1])
def test_threads(exports: Path, engine: str, threads: int) -> None:
    with pytest.raises(QuantizationError, match=rf"^threads is {threads}; give at least 1, or None"):
        load_exported(exports / engine, engine, threads=threads)


@pytest.mark.parametrize("engine", ["ort", "openvino"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_integers_do_not_carry_on(exports: Path, engine: str, value: float) -> None:
    """Engines make numbers of them: what would be NaN in the model is not seen in the output."""
    running, given = load_exported(exports / engine, engine, threads=1), _call()
    given["sample"][1, 2, 3, 4] = value
    with pytest.raises(QuantizationError, match=r"^sample holds NaN or infinity, .*; give finite values$"):
        running(**given)


def test_masks_may_hold_infinity() -> None:
    mask = Input("encoder_attention_mask", "float32", (Dimension(None, 2),))
    assert _array(mask, torch.tensor([0.0, float("-inf")])).tolist() == [0.0, float("-inf")]


class Two(nn.Module):
    """Two inputs of one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 8)

    def forward(self, sample: Tensor, text: Tensor) -> Tensor:
        found: Tensor = self.linear(sample + text)
        return found


def test_inputs_that_contradict_each_other_are_named(tmp_path: Path) -> None:
    def call(samples: int, texts: int) -> dict[str, Any]:
        return {"sample": torch.ones(samples, 16), "text": torch.ones(texts, 16)}

    model = quantize_(Two().eval(), presets.rtn("w8a8"), [call(2, 2)], {})
    export_onnx(model, tmp_path / "two", (), call(2, 2))
    running = load_exported(tmp_path / "two", "ort", threads=1)
    assert running(**call(3, 3))[0].shape == (3, 8)
    with pytest.raises(
        QuantizationError,
        match=r"^text has the shape \[3, 16\], and by the inputs before it 2 stands in the place of 3; ",
    ):
        running(**call(2, 3))
