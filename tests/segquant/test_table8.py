"""DualScale against PTQ4ViT's twin uniform quantization, small."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import pytest
import torch

from benchmarks import table8
from benchmarks.twin_uniform import Twin, TwinLinear, choose_twin
from segquant.kernels.cpu.operators import why_not_exact


def _inputs(rows: int = 40, width: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.gelu(2 * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("twin", [Twin(0.01, 4), Twin(0.02, 0, bits=4), Twin(0.02, 3, bits=4)])
def test_every_value_goes_to_the_nearest_of_its_range(twin: Twin) -> None:
    half, x = 2 ** (twin.bits - 1), _inputs()
    below = [-step * twin.fine for step in range(half + 1)]
    above = [step * twin.fine * 2**twin.shift for step in range(half)]
    for value, found in zip(x.flatten().tolist(), twin.quantize(x).flatten().tolist(), strict=True):
        grid = below if value < 0 else above
        nearest = min(abs(value - point) for point in grid)
        assert abs(value - found) == pytest.approx(nearest, abs=1e-6) and min(abs(found - p) for p in grid) < 1e-6


@pytest.mark.parametrize(("bits", "seed"), itertools.product([4, 8], [0, 1, 2]))
def test_chosen_shift_has_the_least_error_of_all(bits: int, seed: int) -> None:
    x, weight = _inputs(seed=seed), torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
    twin, half = choose_twin(x, weight, bits), 2 ** (bits - 1)
    assert twin.fine * half == pytest.approx(-float(x.min())), "the negative range is covered just so"
    losses = []
    for shift in range(16):
        rounded = torch.zeros_like(x)
        for index in itertools.product(*map(range, x.shape)):
            step, low, high = (twin.fine, -half, 0) if x[index] < 0 else (twin.fine * 2**shift, 0, half - 1)
            rounded[index] = min(max(round(float(x[index]) / step), low), high) * step
        losses.append(float(((rounded - x) @ weight.T).square().sum()))
    assert twin.shift == losses.index(min(losses)) and losses[twin.shift] < losses[0]


def test_inputs_without_one_of_the_signs() -> None:
    weight = torch.ones(1, 2)
    assert choose_twin(torch.tensor([[0.0, 2.54]]), weight) == Twin(pytest.approx(0.02), 0)
    assert choose_twin(torch.tensor([[0.0, -1.28]]), weight) == Twin(pytest.approx(0.01), 0)
    assert choose_twin(torch.zeros(1, 2), weight).quantize(torch.zeros(1, 2)).eq(0).all()


def test_twin_is_a_dualscale_layer_with_other_steps() -> None:
    layer = table8.random_layer("silu", 6, 48, 24)
    dual = table8.quantized(layer, "dual")
    twin = choose_twin(layer.calibration, layer.linear.weight.detach())
    with torch.no_grad():
        right = TwinLinear(twin, dual.weight.detach().clone(), dual.bias)(layer.fresh)
        found = table8.as_dual(twin, dual)(layer.fresh)
    assert torch.allclose(found, right, rtol=1e-5, atol=1e-5) and not torch.equal(dual(layer.fresh), right)


def test_all_ways_in_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(table8, "LAYERS", {"small": lambda: table8.random_layer("silu", 8, 64, 48)})
    table8.main(["--layers", "small", "--rounds", "3", "--calls", "1", "--eager", "--out", str(tmp_path)])
    rows = list(csv.DictReader((tmp_path / "table8.csv").read_text().splitlines()))
    errors = {(row["quantizer"], row["by"]): float(row["error"]) for row in rows}
    assert errors["float32", "definition"] == 0 and {row["run"] for row in rows} == {"eager"}
    assert 0 < errors["DualScale", "definition"] < errors["one scale", "definition"] < 0.2
    assert 0 < errors["twin uniform", "definition"] < errors["one scale", "definition"]
    if why_not_exact() is None:
        kernels = {name for name, by in errors if by == "kernel"}
        assert kernels == {"one scale", "DualScale", "twin uniform", "zero point"}
        for name in kernels:
            assert errors[name, "kernel"] == pytest.approx(errors[name, "definition"], rel=0.02)
    assert (tmp_path / "table8.md").read_text() == capsys.readouterr().out
    assert "| small | definition | " in (tmp_path / "table8.md").read_text()


def test_ratio_is_that_of_the_least_times() -> None:
    def row(quantizer: str, by: str, run: str, time: float) -> table8.Row:
        return table8.Row("a", quantizer, by, run, time, 0.0, 3, 1.0, 0.1)

    rows = [
        row("DualScale", "definition", "eager", 10), row("DualScale", "definition", "compiled", 8),
        row("DualScale", "kernel", "eager", 2), row("twin uniform", "definition", "eager", 12),
    ]  # fmt: skip
    assert table8.ratios(rows) == [("a", "definition", 1.5), ("a", "definition over kernel", 6.0)]
    assert round(table8.PUBLISHED, 1) == 3.9
