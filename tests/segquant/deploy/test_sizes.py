"""Sizes of 1, of which torch.export makes constants, and odd ones: free where the graph is right, else refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


from segquant import QuantizationError, export_onnx, presets, quantize_
from segquant.deploy.run import load_exported
from segquant.deploy.run.denoiser import ExportedDenoiser

WIDTH = 16


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        return self.linear(x) + timestep[:, None, None]


class Centred(Net):
    """Which does otherwise with one picture."""

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        if x.shape[0] > 1:
            x = x - x.mean(0, keepdim=True)
        return self.linear(x) + timestep[:, None, None]


class OfTwo(Net):
    """Which does otherwise with one token."""

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        if x.shape[1] > 1:
            x = x.softmax(1)
        return self.linear(x) + timestep[:, None, None]


class Skip(Net):
    """Which halves its tokens, doubles them and adds what was before: an odd number does not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.halve = nn.Conv1d(WIDTH, WIDTH, 3, stride=2, padding=1)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        halved = self.halve(x.mT)
        doubled = nn.functional.interpolate(halved, scale_factor=2.0, mode="nearest").mT
        return self.linear(x) + doubled[:, : 2 * halved.shape[2]] + timestep[:, None, None]


class Sized(Net):
    """Whose second input has a batch that only fits the first's, as the sizes that SDXL takes."""

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        return self.linear(x) + timestep.reshape(x.shape[0], -1).sum(1)[:, None, None]


class Pairs(Net):
    """Whose batch is of pairs, as with guidance."""

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        first, second = self.linear(x).unflatten(0, (2, -1)).unbind(0)
        return torch.cat([first - second, second]) + timestep[:, None, None]


class Alone(Net):
    """Whose first dimension is no batch."""

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        if x.shape[0] != 1:
            raise ValueError("one at a time")
        return self.linear(x) + timestep[:, None, None]


def _call(batch: int, tokens: int, seed: int = 1) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(batch, tokens, WIDTH, generator=g), "timestep": torch.rand(batch, generator=g)}


def _exported(model: nn.Module, folder: Path, batch: int, tokens: int) -> tuple[nn.Module, ExportedDenoiser]:
    calls = [_call(batch, tokens, seed) for seed in range(2)]
    quantize_(model.eval(), presets.rtn("w8a8"), calls, {})
    export_onnx(model, folder, (), calls[0])
    return model, load_exported(folder, threads=1)


def _takes(running: ExportedDenoiser) -> list[str]:
    return [str(size) for size in running.manifest.inputs[0].dimensions]


def _same(model: nn.Module, running: ExportedDenoiser, batch: int, tokens: int) -> bool:
    given = _call(batch, tokens, seed=9)
    with torch.no_grad():
        wanted = model(**given)
    return bool((running(**given)[0] - wanted).abs().max() < 1e-5 * wanted.abs().max())


@pytest.mark.parametrize("batch", [1, 2])
def test_one_picture_and_one_token(tmp_path: Path, batch: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model, running = _exported(Net(), tmp_path / "out", batch, 3)
    assert _takes(running) == ["1…", "1…", str(WIDTH)] and "fixes" not in caplog.text
    for sizes in ((1, 3), (2, 3), (1, 1), (3, 1), (3, 5)):
        assert _same(model, running, *sizes), sizes


def test_a_model_that_does_otherwise_with_one_keeps_two(tmp_path: Path) -> None:
    model, running = _exported(Centred(), tmp_path / "batch", 2, 3)
    assert _takes(running) == ["2…", "1…", str(WIDTH)] and _same(model, running, 2, 1) and _same(model, running, 3, 4)
    with pytest.raises(QuantizationError, match=r"x has the shape \[1, 3, 16\].* takes \[2…, 1…, 16\]"):
        running(**_call(1, 3))
    model, running = _exported(OfTwo(), tmp_path / "tokens", 1, 3)
    assert _takes(running) == ["1…", "2…", str(WIDTH)] and _same(model, running, 1, 2) and _same(model, running, 3, 4)


@pytest.mark.parametrize("kind", [Alone, Centred])
def test_an_example_of_one_that_two_do_not_stand_for(
    kind: type[Net], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        model, running = _exported(kind(), tmp_path / "out", 1, 3)
    assert _takes(running) == ["1", "1…", str(WIDTH)] and _same(model, running, 1, 3) and _same(model, running, 1, 1)
    assert f"{kind.__name__} fixes dimension 0 of x (1), dimension 0 of timestep (1)" in caplog.text


@pytest.mark.parametrize("tokens", [4, 12])
def test_sizes_that_must_be_even(tokens: int, tmp_path: Path) -> None:
    model, running = _exported(Skip(), tmp_path / "out", 2, tokens)
    assert _takes(running) == ["1…", "2… by 2", str(WIDTH)]
    assert all(_same(model, running, *sizes) for sizes in ((1, 2), (3, 6), (1, 14)))
    with pytest.raises(QuantizationError, match=r"x has the shape \[1, 5, 16\].* takes \[1…, 2… by 2, 16\]"):
        running(**_call(1, 5))


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_batches_that_vary_together(batch: int, tmp_path: Path) -> None:
    model, running = _exported(Sized(), tmp_path / "out", batch, 3)
    assert [str(each) for each in (d.name for d in running.manifest.inputs[1].dimensions)] == [
        running.manifest.inputs[0].dimensions[0].name
    ]
    assert all(_same(model, running, *sizes) for sizes in ((1, 3), (2, 1), (5, 4)))
    with pytest.raises(QuantizationError, match="timestep has the shape"):
        running(x=_call(2, 3)["x"], timestep=torch.rand(4))


def test_one_timestep_for_a_batch_of_pairs(tmp_path: Path) -> None:
    model, running = _exported(Pairs(), tmp_path / "out", 4, 3)
    assert running.manifest.inputs[0].dimensions[0].multiple == 2
    x, time = _call(6, 3)["x"], torch.tensor(0.5)
    with torch.no_grad():
        wanted = model(x=x, timestep=time.expand(6))
    assert bool((running(x=x, timestep=time)[0] - wanted).abs().max() < 1e-5 * wanted.abs().max())
