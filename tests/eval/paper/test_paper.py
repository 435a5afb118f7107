"""The paper's tables 1, 3, 6, 12 and figure 3, rendered from results whose numbers are known."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segquant_bench.eval.paper.curves import curves_plot, size_curves, step_curves
from segquant_bench.eval.paper.extras import extras
from segquant_bench.eval.paper.layers import cut_of, cut_sheets, layer_sheets, layers_csv
from segquant_bench.eval.paper.polarity import kind_of, polarity_sheets
from segquant_bench.eval.report.comparing.comparisons import compare_runs
from segquant_bench.eval.report.drawing.canvas import rendered
from segquant_bench.eval.report.main_table.columns import columns
from segquant_bench.eval.report.provenance import provenance
from segquant_bench.eval.report.runs.groups import group_key, sort_runs
from segquant_bench.eval.report.runs.known import is_ours
from segquant_bench.eval.report.runs.labels import labels, method_name
from segquant_bench.eval.results import RunResult
from segquant_bench.eval.tables.render_html import to_html
from segquant_bench.eval.tables.render_latex import to_latex
from segquant_bench.eval.tables.render_markdown import to_markdown
from segquant_bench.eval.tables.table import Table, heads, row

SEGMENTS = {
    "blocks.0.norm1.linear": {"output": [4] * 6, "input": None, "activation": "silu", "input_activations": None},
    "blocks.1.norm1.linear": {"output": [4] * 6, "input": None, "activation": "silu", "input_activations": None},
    "blocks.0.attn.to_out.0": {
        "output": None,
        "input": [8, 8],
        "activation": None,
        "input_activations": [None, "gelu"],
    },
    "blocks.0.ff.net.2": {"output": None, "input": None, "activation": "gelu", "input_activations": None},
}
LAYERS = [*SEGMENTS, "proj_out"]


def piece(activation: str, negative: float, positive: float) -> dict[str, Any]:
    return {
        "activation": activation, "channels": 16, "rows": 40, "mostly_negative": negative,
        "mostly_positive": positive, "negative": 0.75, "positive": 0.25,
    }  # fmt: skip


STATISTICS = {
    "segments": SEGMENTS,
    "polarity": {
        "blocks.0.norm1.linear": [piece("silu", 0.9, 0.1)],
        "blocks.1.norm1.linear": [piece("silu", 1.0, 0.0)],
        "blocks.0.ff.net.2": [piece("gelu", 0.7, 0.3)],
    },
}


def run(job: int, quantizer: str, errors: float, precision: str = "w8a8", **settings: Any) -> RunResult:
    """A run whose every layer error is `errors`; settings such as `seglinear=True` or `prompts=4`."""
    calibration = {"name": "uniform", "prompts": settings.pop("prompts", 32)}
    correction = {"name": "x", "method": settings.pop("correction", "none")}
    steps = [step for step in range(5) for _ in range(4)]
    return RunResult(
        path=Path(f"/nowhere/{job}_{quantizer}/results.json"), name=f"{quantizer}_{precision}", model="emoji_sd3",
        quantizer=quantizer, precision=precision, dataset="emoji", seed=0, n_images=8, config_hash=str(job), metrics=(),
        layer_errors=dict.fromkeys(LAYERS, errors), output_error=2 * errors,
        per_row_output_errors=tuple(errors * (step + 1) * (1 + 0.1 * (i % 4)) for i, step in enumerate(steps)),
        stages={}, artifacts={}, prompts=("a",), weight_bytes=1, weight_bytes_float=4, per_row_steps=tuple(steps),
        per_row_prompts=tuple(i % 4 for i in range(len(steps))),
        config={
            "quantizer": {"_target_": f"segquant.presets.{quantizer}", "precision": precision, **settings},
            "calibration": calibration, "correction": correction,
        },
        statistics=STATISTICS,
    )  # fmt: skip


CONTROLS = [
    run(0, "gptq", 0.08, seglinear=False, cuts="graph", seed=0),
    run(1, "gptq", 0.04, seglinear=True, cuts="graph", seed=0),
    run(2, "gptq", 0.04, seglinear=True, cuts="random", seed=0),
    run(3, "gptq", 0.16, seglinear=True, cuts="random", seed=1),
    run(4, "gptq", 0.07, seglinear=True, cuts="wrong", seed=0),
]


def texts(sheet: Table) -> list[list[str]]:
    return [[cell.text for cell in cells] for cells in (*sheet.rows, *sheet.summary)]


def test_table6_is_by_cut_with_the_ratio_to_none() -> None:
    (sheet,) = cut_sheets(list(reversed(CONTROLS)))
    assert sheet.title == "Cuts under gptq at w8a8: emoji_sd3 on emoji, seed 0"
    assert sheet.head == ("layer", "graph's cut", "no cuts", "graph", "random (2 draws)", "wrong")
    rows = texts(sheet)
    assert [cells[0] for cells in rows[:3]] == list(SEGMENTS)[:3]  # the layers that are cut, and no others
    assert rows[0] == ["blocks.0.norm1.linear", "out 6, silu", "0.0800", "0.0400", "0.0800", "0.0700"]
    assert [cells[0] for cells in rows[3::2]] == [
        f"geometric mean of {what}" for what in ("3 layers", "2 with a cut output", "1 with a cut input")
    ]
    assert rows[3][2:] == ["0.0800", "0.0400", "0.0800", "0.0700"]
    assert rows[4][2:] == ["–", "×0.500 [0.500, 0.500]", "×1.000 [1.000, 1.000]", "×0.875 [0.875, 0.875]"]
    assert not any(cell.bold for cells in (*sheet.rows, *sheet.summary) for cell in cells), "errors without intervals"


def test_table3_has_a_table_for_each_method_and_each_other_setting() -> None:
    runs = [
        run(job, name, 0.1 / (job + 1), seglinear=cut, dualscale=dual)
        for job, (name, dual, cut) in enumerate(
            (name, dual, cut) for name in ("smoothquant", "gptq") for dual in (False, True) for cut in (False, True)
        )
    ]
    found = [sheet.title.partition(" at ")[0] for sheet in cut_sheets(runs)]
    assert found == [
        "Cuts under smoothquant", "Cuts under smoothquant +dualscale", "Cuts under gptq", "Cuts under gptq +dualscale",
    ]  # fmt: skip
    assert cut_sheets(runs[:1]) == []  # nothing to compare with


def test_ratio_is_the_paired_geometric_mean() -> None:
    rng = np.random.default_rng(0)
    values = np.exp(rng.normal(size=(2, 3)))
    runs = CONTROLS[:2]
    for entry, errors in zip(runs, values, strict=True):
        runs = [*runs, replace(entry, layer_errors=dict(zip(SEGMENTS, errors, strict=False)))]
    (sheet,) = cut_sheets(runs[2:])
    ratio = math.exp(np.log(values[1] / values[0]).mean())
    assert texts(sheet)[4][3].startswith(f"×{ratio:.3f} [")


def test_table12_has_every_layer() -> None:
    runs = [run(0, "rtn", 0.2), run(1, "segquant_g", 0.1), run(2, "rtn", 0.3, "w4a8")]
    eight, four = layer_sheets(runs)
    assert eight.head == ("layer", "cuts", "rtn", "segquant_g") and four.head == ("layer", "cuts", "rtn")
    rows = texts(eight)
    assert [cells[0] for cells in rows] == [*LAYERS, "geometric mean"]
    assert rows[2] == ["blocks.0.attn.to_out.0", "in 2, gelu", "0.200", "0.100"]
    assert not any(cell.bold for table in (eight, four) for cells in (*table.rows, *table.summary) for cell in cells)
    lines = list(csv.DictReader(io.StringIO(layers_csv(runs))))
    assert len(lines) == 15 and lines[0]["error"] == "0.2" and lines[0]["cut"] == "out 6, silu"
    assert layer_sheets([run(job, f"tool{job}", 0.1) for job in range(13)]) == []
    assert cut_of(runs[0], "proj_out") == ""


def test_table1_is_by_kind_of_layer() -> None:
    (sheet,) = polarity_sheets([run(0, "rtn", 0.1), run(1, "gptq", 0.1)])
    assert sheet.title == "Signs after activations: emoji_sd3 on emoji, 32 calibration prompts (uniform steps)"
    assert texts(sheet) == [
        ["blocks.*.norm1.linear", "silu", "2", "16", "40", "0.950", "0.050", "0.750"],
        ["blocks.*.ff.net.2", "gelu", "1", "16", "40", "0.700", "0.300", "0.750"],
    ]
    assert kind_of("down.0.attentions.1.blocks.3.ff.net.2") == "down.*.attentions.*.blocks.*.ff.net.2"


def test_figure3_is_the_mean_of_every_step() -> None:
    panels = step_curves([run(0, "rtn", 0.1), run(1, "segquant_g", 0.05), run(2, "rtn", 0.3, "w4a8")])
    assert panels.keys() == {"w8a8", "w4a8"}
    rtn, ours = panels["w8a8"]
    assert (rtn.label, rtn.ours, ours.label, ours.ours) == ("rtn", False, "segquant_g", True)
    assert rtn.x == (1, 2, 3, 4, 5)
    assert rtn.y == pytest.approx([0.1 * (step + 1) * 1.15 for step in range(5)])
    for value, interval in zip(rtn.y, rtn.intervals, strict=True):
        assert interval is not None and interval[0] < value < interval[1]


def test_every_model_has_its_curves() -> None:
    runs = [run(0, "rtn", 0.1), dataclasses.replace(run(1, "rtn", 0.2), model="emoji_flux")]
    panels = step_curves(runs)
    assert {title: curve.y[0] for title, (curve,) in panels.items()} == pytest.approx(
        {"w8a8, emoji_sd3": 0.115, "w8a8, emoji_flux": 0.23}
    )
    more = [dataclasses.replace(r, config={**r.config, "calibration": {"prompts": 4}}) for r in runs]
    more = [dataclasses.replace(r, path=Path(f"/nowhere/{i}/results.json")) for i, r in enumerate(more)]
    assert len(size_curves([*runs, *more])) == 4


def _with_parts(found: RunResult, *parts: str, key: str = "k") -> RunResult:
    components = {"controlnet": {"layer_errors": {"controlnet.a": 0.4}, "weight_bytes": 2, "weight_bytes_float": 8}}
    return dataclasses.replace(
        found, config={**found.config, "quantize": list(parts)}, components=components,
        layer_errors=found.layer_errors if "denoiser" in parts else {}, stages={"quantize": {"key": key}},
    )  # fmt: skip


def test_runs_of_other_components_are_told_apart_and_compared() -> None:
    both = ("denoiser", "controlnet")
    runs = [
        _with_parts(run(0, "rtn", 0.1), "denoiser"),
        _with_parts(run(1, "rtn", 0.1), *both),
        _with_parts(run(2, "segquant_g", 0.05), *both, key="g"),
        _with_parts(run(3, "segquant_g", 0.05), "controlnet", key="c"),
    ]
    assert list(labels(runs).values()) == ["rtn", "rtn+controlnet", "segquant_g+controlnet", "segquant_g@controlnet"]
    assert len({group_key(r) for r in runs}) == 3
    cells = {column.key: column.cell(runs[1]) for column in columns(runs)}
    assert cells["weight_mb"].value == 3e-6 and cells["compression"].value == 4
    n = len(LAYERS)
    assert cells["layer_error"].value == pytest.approx((0.1**n * 0.4) ** (1 / (n + 1)))
    pairs = {(c.ours, c.theirs) for c in compare_runs(runs)[0]}
    assert pairs == {
        ("rtn+controlnet", "rtn"),
        ("segquant_g+controlnet", "rtn+controlnet"),
        ("segquant_g@controlnet", "segquant_g+controlnet"),
    }
    (curves,) = step_curves(runs).values()  # the same quantized denoiser is drawn once, a float one not at all
    assert [curve.label for curve in curves] == ["rtn", "segquant_g+controlnet"]


def test_steps_that_are_unknown_or_too_few_give_no_figure() -> None:
    known = run(0, "rtn", 0.1)
    without = replace(known, per_row_steps=())
    two = replace(known, per_row_steps=(0, 1) * 10)
    assert step_curves([without, two]) == {}


def test_calibration_size_is_a_line_per_method() -> None:
    runs = [
        run(job, "smoothquant", 0.1 / prompts * (2 if alpha == 0.5 else 1), alpha=alpha, prompts=prompts)
        for job, (alpha, prompts) in enumerate((alpha, prompts) for alpha in (0.5, "search") for prompts in (32, 4))
    ]
    panels = size_curves([*runs, run(9, "rtn", 0.1)])
    assert panels.keys() == {"output error at w8a8", "layer error at w8a8"}
    fixed, searched = panels["layer error at w8a8"]
    assert (fixed.label, searched.label) == ("smoothquant alpha=0.5", "smoothquant alpha=search")
    assert fixed.x == (4, 32) and fixed.y == pytest.approx((0.05, 0.00625))


@pytest.mark.parametrize("doubling", [False, True])
def test_plots_are_pictures(doubling: bool) -> None:
    panels = step_curves([run(0, "rtn", 0.1), run(1, "auto", 0.05), run(2, "rtn", 0.3, "w4a8")])
    with Image.open(io.BytesIO(rendered(curves_plot(panels, "sampling step", doubling=doubling)))) as picture:
        assert picture.format == "PNG" and picture.width > 800 and picture.height > 300
        assert len(set(picture.convert("RGB").resize((200, 80)).getdata())) > 20


def test_labels_tell_what_differs() -> None:
    runs = [run(0, "rtn", 0.1, seglinear=False), run(1, "rtn", 0.1, seglinear=True), run(2, "gptq", 0.1, damp=0.1)]
    assert list(labels(runs).values()) == ["rtn", "rtn +seglinear", "gptq"]
    sizes = [run(0, "rtn", 0.1, prompts=4), run(1, "rtn", 0.1, prompts=32)]
    assert list(labels(sizes).values()) == ["rtn prompts=4", "rtn prompts=32"]
    assert list(labels(sizes, ("calibration.prompts",)).values()) == ["rtn", "rtn"]
    same = [run(0, "rtn", 0.1, rank=None), run(1, "rtn", 0.1, rank=None)]
    assert list(labels(same).values()) == ["rtn_w8a8", "rtn_w8a8"]
    nested = [run(0, "auto", 0.1, budget={"bytes": 1.1}), run(1, "auto", 0.1, budget={"bytes": None})]
    assert list(labels(nested).values()) == ["auto budget.bytes=1.1", "auto budget.bytes=none"]


def test_a_correction_is_part_of_the_method() -> None:
    assert method_name(run(0, "rtn", 0.1, correction="tac")) == "rtn+tac"
    assert method_name(run(0, "tac", 0.1, correction="tac")) == "tac"
    runs = [run(0, "rtn", 0.1), run(1, "rtn", 0.1, correction="tac")]
    assert list(labels(runs).values()) == ["rtn", "rtn+tac"]


def test_order_of_methods_and_jobs() -> None:
    quantizers = ["auto", "a_new_tool", "segquant_g", "tac", "segquant_a", "rtn"]
    runs = [run(job, name, 0.1) for job, name in enumerate(quantizers)]
    assert [r.quantizer for r in sort_runs(runs)] == ["rtn", "tac", "a_new_tool", "segquant_a", "segquant_g", "auto"]
    jobs = [run(job, "rtn", 0.1, alpha=job) for job in (10, 2, 1)]
    assert [r.path.parent.name for r in sort_runs(jobs)] == ["1_rtn", "2_rtn", "10_rtn"]
    assert [is_ours(name) for name in ("segquant_g +seglinear", "auto", "automatic", "rtn")] == [
        True,
        True,
        False,
        False,
    ]


def test_sheets_in_three_forms() -> None:
    sheet = Table(heads(("layer",), ("a_b",)), ((row(["x|y"], ["–"]),),), (row(["mean"], ["<1>"]),), "T_1")
    assert to_markdown(sheet) == "## T_1\n\n| layer | a_b |\n| --- | ---: |\n| x\\|y | – |\n| mean | <1> |\n"
    latex = to_latex(sheet)
    assert r"a\_b" in latex and "x|y & -- " in latex and latex.count(r"\midrule") == 2
    page = to_html(sheet)
    assert "&lt;1&gt;" in page and page.count("<tr") == page.count("</tr>") == 3


def test_extras_are_named_by_content() -> None:
    found = extras(CONTROLS)
    assert found.texts.keys() == {
        *(f"{name}.{kind}" for name in ("polarity", "cuts", "layers") for kind in ("md", "tex")),
        "layers.csv", "timesteps.csv",
    }  # fmt: skip
    assert found.pictures.keys() == {"timesteps.png"}
    assert [title for title, _ in found.sections] == [
        "Signs after activations",
        "Where layers are cut",
    ], "the page has a chart of errors by layer"
    assert [chart.name for chart in found.charts] == ["timesteps"]
    for name, text in found.texts.items():
        body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
        assert not name.endswith(".tex") or not re.search(r"(?<!\\)_", body)
    assert extras([]).texts == {}


def test_every_text_says_where_its_numbers_come_from() -> None:
    for name, text in extras(CONTROLS).texts.items():
        if name.endswith(".md"):
            assert text.endswith("gptq +seglinear cuts=wrong seed=0 w8a8 4\n"), name
    hashes = provenance(CONTROLS)[-1]
    assert hashes.startswith("configuration hashes: gptq cuts=graph seed=0 w8a8 0, gptq +seglinear cuts=graph")
    assert provenance([run(7, "none", 0.0)])[-1] == "configuration hashes: unquantized 7"


def test_variants_of_ours_meet_the_first_run_of_every_other_method() -> None:
    runs = [
        run(0, "rtn", 0.2), run(1, "smoothquant", 0.2, alpha=0.5), run(2, "smoothquant", 0.1, alpha=0.7),
        run(3, "auto", 0.05, bits=4), run(4, "auto", 0.04, bits=5),
    ]  # fmt: skip
    found, _ = compare_runs(runs)
    pairs = list(dict.fromkeys((c.ours, c.theirs) for c in found))
    assert pairs == [
        ("smoothquant alpha=0.7", "smoothquant alpha=0.5"),
        ("auto bits=4", "rtn"), ("auto bits=4", "smoothquant alpha=0.5"), ("auto bits=4", "smoothquant alpha=0.7"),
        ("auto bits=5", "auto bits=4"), ("auto bits=5", "rtn"), ("auto bits=5", "smoothquant alpha=0.5"),
    ]  # fmt: skip
