"""fp8 by the `cpu` backend: every code, every rounding, and the ends of the range."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import segquant
from segquant import QuantScheme, QuantSpec, Segments
from segquant.kernels.cpu import operators
from segquant.kernels.cpu.backend import Cpu
from segquant.numerics import functional as F
from tests.segquant.kernels.layouts import CUTS, assert_close, both_of, inputs, layer_of
from tests.segquant.support import tensor

REASON = operators.why_not_exact()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"the cpu backend {REASON}")
E4M3 = torch.float8_e4m3fn
SCALES = ((1.0, 1.0), (0.37, 1.9), (1e-38 * 2, 3e-5), (7e35, 7e35), (2.0**-120, 2.0**100))
"""For x >= 0 and below."""


def every_code() -> Tensor:
    return torch.arange(256, dtype=torch.uint8).view(E4M3)


def edges() -> Tensor:
    """Every code's value, the ties between them, what lies next to these, and what lies beyond."""
    known = every_code().float()
    known = known[known.isfinite()].unique()
    ties = (known[1:] + known[:-1]) / 2
    near = torch.cat((known, ties, torch.tensor([448.0, 455, 464, 465, 500, 1e5, 3e38]), -known[:3] * 1e4))
    infinity = torch.tensor(torch.inf)
    either = torch.cat((near, near.nextafter(infinity), near.nextafter(-infinity), infinity[None]))
    tiny = torch.tensor([1e-45, 1e-40, 1.2e-38, 2.0**-11, 2.0**-10])
    return torch.cat((either, -either, tiny, -tiny, torch.zeros(1), -torch.zeros(1)))


def product(x: Tensor, codes: Tensor, above: Tensor, below: Tensor | None = None) -> Tensor:
    """x [rows, in] times codes [out, in], scales of weights 1; of the input [1, 1]."""
    outputs, columns = codes.shape
    form = ([outputs], [columns], [int(below is not None)], [columns], 8, 8, False)
    return operators.linear(x, codes, torch.ones(outputs, 1), *(None,) * 4, [], None, above, below, None, *form)


def same(found: Tensor, expected: Tensor) -> bool:
    return torch.equal(found.isnan(), expected.isnan()) and torch.equal(found.nan_to_num(), expected.nan_to_num())


def test_every_rounding_times_every_code_is_exact() -> None:
    x, codes, one = edges(), every_code(), torch.ones(1, 1)
    rounded = x.clamp(-448, 448).to(E4M3).float()
    expected = (rounded.double()[:, None] * codes.double()).float()
    assert same(product(x[:, None], codes[:, None], one), expected)
    assert same(product(x[:, None], codes[:, None], one, one), expected)


@pytest.mark.parametrize(("above", "below"), SCALES)
def test_scaled_values_are_rounded_as_the_definition_does(above: float, below: float) -> None:
    """Scaled ties, and other numbers; one that is multiplied, all columns of a vector and of its rest."""
    first, second = torch.tensor([[above]]), torch.tensor([[below]])
    scale = torch.where(edges() < 0, second, first)[0]
    x = torch.cat((edges() * scale, tensor(4096) * 30 * above, -tensor(4096).abs() * 30 * below))
    x = torch.cat((x, torch.tensor([torch.nan, torch.inf, -torch.inf])))
    one = torch.ones(1, 1).to(E4M3)
    found = product(x[:, None], one, first, second)[:, 0]
    assert same(found, F.dual_fake_quantize(x, first[0], second[0], "fp8"))
    assert same(product(x[:, None], one, first)[:, 0], F.fake_quantize(x, first[0], "fp8"))


@pytest.mark.parametrize("columns", [1, 2, 15, 33, 64, 97])
def test_every_column_has_its_own_product(columns: int) -> None:
    """Whatever its place in a word, a vector and a panel."""
    codes, x = (
        torch.zeros(70, columns).to(E4M3),
        torch.eye(columns) * torch.arange(1, columns + 1).clamp(max=16)[:, None],
    )
    codes.view(torch.uint8)[:] = torch.randint(0, 127, codes.shape, generator=torch.Generator().manual_seed(0))
    expected = x.diagonal()[:, None] * codes.float().T
    assert torch.equal(product(x, codes, torch.ones(1, 1)), expected)
    assert torch.equal(product(-x, codes, torch.ones(1, 1), torch.ones(1, 1)), -expected)


@pytest.mark.parametrize("rows", [1, 5, 23])
@pytest.mark.parametrize("columns", [511, 512, 513, 1030, 5000])
def test_long_sums_err_no_more_than_torchs(columns: int, rows: int) -> None:
    codes = tensor(40, columns).to(E4M3)
    x = tensor(rows, columns, seed=3).to(E4M3).float()
    exact = x.double() @ codes.double().T
    for below in (None, torch.ones(1, 1)):
        errs = (product(x, codes, torch.ones(1, 1), below) - exact).abs()
        assert float(errs.max()) < 3e-7 * float(exact.abs().max()) + 3e-7 * columns**0.5


@pytest.mark.parametrize("precision", ["fp8", "fp8_dynamic"])
@pytest.mark.parametrize("size", [1e-44, 1e-40, 1e-36, 1e-20, 1e30, 3e37])
def test_very_small_and_very_large_inputs_are_the_reference(precision: str, size: float) -> None:
    for cut in ("plain", "mixed"):
        layer, x = layer_of(precision, CUTS[cut]), tensor(9, 384, seed=2) * size
        found, expected = both_of(Cpu(), layer, x)
        assert torch.equal(found.isfinite(), expected.isfinite())
        assert_close(layer, found, expected)


@pytest.mark.parametrize("cut", ["plain", "dual"])
def test_infinite_inputs_saturate_static_scales(cut: str) -> None:
    layer, x = layer_of("fp8", CUTS[cut]), inputs(5, 384)
    x[1, 3], x[2, 5] = torch.inf, -torch.inf
    found, expected = both_of(Cpu(), layer, x)
    assert bool(found.isfinite().all())
    assert_close(layer, found, expected)


def test_a_weight_that_is_no_number_spreads_over_its_output() -> None:
    for cut in ("plain", "mixed"):
        layer = layer_of("fp8", CUTS[cut])
        layer.codes[7, 300], layer.codes[20, 0] = 0x7F, 0xFF
        found, expected = both_of(Cpu(), layer, inputs(4, 384))
        assert torch.equal(found.isnan(), expected.isnan()) and found.isnan().any(0).nonzero().flatten().tolist() == [
            7,
            20,
        ]


@pytest.mark.parametrize(("activation", "size"), [("silu", (9, 17)), (None, (9, 17)), ("silu", (3, 3))])
def test_convolutions_hold_no_number_and_saturate(activation: str | None, size: tuple[int, int]) -> None:
    """By squares of floats, by products of bfloat16, and with few patches."""
    torch.manual_seed(0)
    model: Any = torch.nn.Sequential(torch.nn.Conv2d(32, 20, 3, padding=1))
    x = tensor(2, 32, *size)
    method = segquant.presets.segquant_a("fp8", alpha=0.5, convolutions=True)
    segquant.quantize_(model, method, [x], {"0": Segments(input=(16, 16), activation=activation)})
    for value in (0.5, torch.inf, -torch.inf):
        x[1, 3, 2, 1], x[0, 20, 0, 0] = value, value
        found, expected = both_of(Cpu(), model[0], x)
        assert bool(found.isfinite().all())
        assert_close(model[0], found, expected)
    x[1, 3, 2, 1] = torch.nan
    found, expected = both_of(Cpu(), model[0], x)
    assert torch.equal(found.isnan(), expected.isnan()) and bool(found.isnan().any())
    known = ~found.isnan()
    assert float((found - expected)[known].abs().max()) < 1e-5 * float(expected[known].abs().max())


@pytest.mark.parametrize(("weight", "given", "reason"), [
    ("fp8", "int8", "multiplies codes of one kind, and these are fp8 and int8"),
    ("int8", "fp8", "multiplies codes of one kind, and these are int8 and fp8"),
    ("fp8_e5m2", "fp8", "multiplies integers or fp8, and fp8_e5m2 is neither"),
])  # fmt: skip
def test_kinds_that_do_not_go_together_are_refused_by_name(weight: str, given: str, reason: str) -> None:
    layer = layer_of(QuantScheme(QuantSpec(weight, "channel"), QuantSpec(given, "tensor")), Segments())
    assert Cpu().why_not(layer.layout, torch.device("cpu")) == reason


def test_the_operator_refuses_what_e4m3_has_not() -> None:
    codes, one = torch.ones(1, 4).to(E4M3), torch.ones(1, 1)
    for bits, zero in ((4, False), (8, True)):
        with pytest.raises(RuntimeError, match="e4m3 has 8 bits and no zero point"):
            form = ([1], [4], [0], [4], 8, bits, zero)
            operators.linear(torch.ones(1, 4), codes, one, *(None,) * 4, [], None, one, None, None, *form)


def test_tables_say_that_fp8_runs(capsys: pytest.CaptureFixture[str]) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(32, 16), torch.nn.Conv2d(4, 6, 3))
    torch.manual_seed(0)
    for name in ("fp8", "fp8_dynamic"):
        parts = [torch.nn.Sequential(part) for part in model]
        for part, x in zip(parts, (inputs(6, 32), tensor(1, 4, 9, 9)), strict=True):
            segquant.quantize_(part, segquant.presets.rtn(name, convolutions=True), [x])
            table = segquant.set_backend_(part, "auto", strict=True)
            assert [(each.backend, each.reason) for each in table] == [("cpu", "")]
    assert "cpu" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["-mno-avx512f", "-DSEGQUANT_FLOATS"])
def test_processors_without_products_of_bfloat16_are_as_exact(flags: str, tmp_path: Path) -> None:
    own = {"SEGQUANT_CACHE": str(tmp_path), "CXXFLAGS": flags, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not slow", __file__]
    done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert " passed" in done.stdout and len(list(tmp_path.glob("cpu-*.so"))) == 1


@pytest.mark.parametrize(("channels", "kernel", "pieces"), [(3, 3, None), (1, 1, None), (8, 3, (3, 5)), (17, 1, None)])
def test_convolutions_of_odd_columns_do_not_see_what_the_memory_held(
    channels: int, kernel: int, pieces: tuple[int, ...] | None
) -> None:
    """A word of two bfloat16 has a half left over; calls before may have left NaN there."""
    x = tensor(2, channels, 12, 12)
    conv = torch.nn.Conv2d(channels, 20, kernel, padding=kernel // 2)
    quantized = segquant.quantize_(
        torch.nn.Sequential(conv), segquant.presets.rtn("fp8", convolutions=True, seglinear=True), [x],
        {} if pieces is None else {"0": Segments(input=pieces)},
    )  # fmt: skip
    expected = quantized(x)
    segquant.set_backend_(quantized, "cpu")
    poisoned = x.clone()
    poisoned[0] = torch.nan
    quantized(poisoned)
    torch.testing.assert_close(quantized(x), expected, rtol=1e-4, atol=1e-5)
