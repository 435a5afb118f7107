"""The benchmarks' model, inputs and table, small."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("diffusers")

from benchmarks import formats, formats_page, pages, random_models
from benchmarks.kernel_bars import Row, bar_table, bars, error_bars, memory_bars
from benchmarks.quantize_cost import CLEAR, Setting, Stopwatch, arguments, measure, refused, table
from benchmarks.random_flux import flux_inputs, random_flux
from benchmarks.random_sd3 import denoiser_inputs, random_sd3
from benchmarks.random_unet import random_unet, unet_inputs
from segquant import PRECISIONS, find_segments, presets, quantize_


def test_the_random_model_is_seeded_and_hard() -> None:
    model, again, other = (random_sd3(1, 2, 16, seed=seed) for seed in (0, 0, 1))
    states = [entry.state_dict() for entry in (model, again, other)]
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())
    assert not torch.equal(states[2]["proj_out.weight"], states[0]["proj_out.weight"])
    chunks = random_sd3(2, 2, 16).transformer_blocks[0].norm1.linear.weight.detach().view(6, -1).norm(dim=1)
    assert float(chunks.max() / chunks.min()) > 5
    segments = find_segments(random_sd3(2, 2, 16), (), denoiser_inputs(model, 1, 0)[0])
    assert segments["transformer_blocks.0.norm1.linear"].output == (32,) * 6


def test_inputs_cover_the_schedule_and_differ_by_seed() -> None:
    model = random_sd3(1, 2, 16)
    inputs, again, fresh = (denoiser_inputs(model, 16, seed) for seed in (1, 1, 2))
    steps = torch.stack([entry["timestep"] for entry in inputs])
    assert torch.equal((steps[:, 0] / 1000 * 16).long().sort().values, torch.arange(16))
    assert torch.equal(steps[:, 0], steps[:, 1]), "guidance: both items at one step"
    assert torch.equal(inputs[3]["hidden_states"], again[3]["hidden_states"])
    assert not torch.equal(inputs[3]["hidden_states"], fresh[3]["hidden_states"])
    with torch.no_grad():
        assert model(**inputs[0])[0].shape == inputs[0]["hidden_states"].shape


@pytest.mark.skipif(not CLEAR.exists(), reason="peak memory is read from Linux's /proc")
def test_costs_of_a_method_in_a_table() -> None:
    cost = measure(Setting("segquant_g", "w8a8", calls=4, fresh=2, layers=1, heads=1, memory_limit=900_000))
    assert cost.passes > 1 and 0 < cost.error < 0.5 and cost.peak >= 0
    assert min(cost.graph, cost.observe, cost.solve, cost.cpu, cost.stored) > 0
    head, rule, row = table([cost]).splitlines()
    assert head.count("|") == rule.count("|") == row.count("|") == 11
    assert row.startswith("| segquant_g | w8a8 | ") and f"| {cost.error:.3f} |" in row


def test_formats_are_held_to_bars_by_their_kind() -> None:
    """What is measured takes minutes: here the bars, and what a float model's bits are."""
    bars = {name: formats.bar(name) for name in PRECISIONS}
    assert {name for name, bar in bars.items() if bar == formats.TABLE_BAR} == {"mxfp4", "nvfp4", "w4a16_nf4"}
    assert formats.BAR < formats.TABLE_BAR and set(bars.values()) == {formats.BAR, formats.TABLE_BAR}
    rows = [
        formats.Row("x", name, "plain", 1.0, times, bars[name], 0.1, 8.0)
        for name, times in (("w8a8", 2.1), ("nvfp4", 2.1))
    ]
    _, _, slow, fast = formats.table(rows).splitlines()
    assert slow.endswith("| not held |") and fast.endswith("| held |")
    layer = quantize_(nn.Sequential(nn.Linear(64, 8)), presets.rtn("w4a16"), [], {})
    assert formats._bits(nn.Linear(4, 4)) == 32 and formats._bits(layer) == 4 + 16 / 64


def test_stopwatch_and_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 11.0, 13.0, 16.0])
    monkeypatch.setattr("benchmarks.quantize_cost.time.perf_counter", lambda: next(times))
    watch = Stopwatch()
    for stage in ("observe", "quantize", "observe"):
        watch(stage, 1, 2)
    assert dict(watch.seconds) == {"observe": 4.0, "quantize": 2.0}
    options = arguments(["--methods", "rtn", "--precisions", "w4a8", "--workers", "2", "--memory-limit", "5"])
    assert (options.methods, options.workers, options.memory_limit, options.calls) == (["rtn"], 2, 5, 64)
    assert refused("rtn", "w4a16") is None and "w4a16" in (refused("smoothquant", "w4a16") or "")


SMALL = {
    "flux": (lambda: random_flux(1, 1, 2, 16), flux_inputs),
    "unet": (lambda: random_unet(32), unet_inputs),
}


@pytest.mark.parametrize("kind", SMALL)
def test_other_families_are_seeded_and_hard(kind: str) -> None:
    make, draw = SMALL[kind]
    model, again = make(), make()
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())
    inputs = draw(model, 2, 1)
    with torch.no_grad():
        output = model(**inputs[0])[0]
    assert bool(output.isfinite().all()) and 0.3 < float(output.std()) < 10


@pytest.mark.parametrize("kind", SMALL)
def test_random_models_in_a_table(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(random_models.MODELS, kind, SMALL[kind])
    random_models.main(["--models", kind, "--quantizers", "rtn", "segquant_g", "--calls", "6", "--fresh", "2"])
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[2].strip() for row in rows] == ["rtn", "segquant_g"]
    assert 0 < float(rows[1][4]) < float(rows[0][4]) < 0.5


def test_bars_of_kernels_are_against_plain_torch() -> None:
    def row(precision: str, form: str, engine: str, run: str, speed: float) -> Row:
        error = 0.0102 if engine == "cpu" else 0.01
        return Row("sd35_block", precision, form, engine, run, 1e3 / speed, speed, error, 1.0)

    rows = [
        row("float32", "", "torch", "eager", 1.0), row("float32", "", "torch, attention int8", "eager", 1.1),
        row("w8a8", "dual", "reference", "eager", 0.5), row("w8a8", "dual", "cpu", "eager", 2.0),
        row("w8a8", "zero_point", "cpu", "eager", 2.4), row("w8a8", "zero_point", "cpu", "compiled", 2.6),
        row("fp8", "dual", "reference", "eager", 0.9),
    ]  # fmt: skip
    found = {what: (wanted, reached) for what, wanted, reached in bars(rows)}
    assert found["sd35_block: int8 over float32 eager"] == (2.5, 2.6)  # not over what our own kernel quickens
    assert found["sd35_block: zero point over two products"] == (1.12, 1.3)
    assert found["sd35_block w8a8 dual cpu eager over the reference"] == (1.0, 4.0)
    assert found["sd35_block: int8 over bfloat16"] == (1.4, None)  # bfloat16 was not measured
    assert "| sd35_block: int8 over bfloat16 | 1.4 | – | not measured |" in bar_table(bars(rows))
    # what has no kernel is judged as it runs, what has one by that
    assert found["sd35_block fp8 dual reference eager over float32 eager"] == (1.0, 0.9)
    assert "sd35_block w8a8 dual reference eager over float32 eager" not in found
    assert "sd35_block fp8 dual reference eager over the reference" not in found
    assert "| sd35_block: int8 over float32 eager | 2.5 | 2.60 | held |" in bar_table(bars(rows))
    assert "| 2.5 | 2.40 | not held |" in bar_table([("it", 2.5, 2.4)])
    held = memory_bars(rows)
    judged = ("w8a8 dual cpu", "w8a8 zero_point cpu", "fp8 dual reference")
    assert held == [(f"sd35_block {name} bytes a weight", 1.1, 1.0) for name in judged]
    (error,) = error_bars(rows)  # the zero point's reference was not measured
    assert error[:2] == ("sd35_block w8a8 dual cpu eager error", 1.03) and error[2] == pytest.approx(1.02)
    assert "| 1.1 | 1.00 | held |" in bar_table(held, least=False)
    assert "| 0.7 | 0.81 | not held |" in bar_table([("it", 0.7, 0.81)], least=False)


def test_a_page_of_formats() -> None:
    """Several seeds' line stands for theirs; what has not run is a dash; a page without a mark is refused."""

    def line(precision: str, method: str, error: float, sd: str = "") -> dict[str, str]:
        return {"precision": precision, "method": method, "weight_mb": "8.07", "output_error": str(error),
                "output_error.sd": sd, "psnr": "31.96"}  # fmt: skip

    lines = [line("w4a8", "rtn", 0.2158), line("w4a8", "gptq_mse", 0.1069, "0.0023"), line("w4a8", "gptq_mse", 0.2)]
    table = formats_page.methods_table(lines, ("rtn", "gptq_mse", "auto"))
    assert table.splitlines()[2] == "| w4a8 | 8.07 | .216 | 32.0 | .107 ± .0023 | 32.0 | – | – | – |"
    assert formats_page.methods_table(lines, ("rtn", "auto"), all_of=("auto",)) == "None has run.\n"
    page = "a\n<!-- table: x -->\nold\n<!-- end of table -->\nb"
    assert pages.filled(page, "x", "new\n") == page.replace("old", "new")
    with pytest.raises(SystemExit, match="no place for the table 'y'"):
        pages.filled(page, "y", "new\n")
