"""Comparisons as files: all as CSV, the main ones in a few lines."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from segquant_bench.eval.report.comparing.comparison import Comparison
from segquant_bench.eval.report.comparing.summary import FEW, comparisons_markdown, comparisons_table
from segquant_bench.eval.tables.render_csv import to_csv

FID = Comparison(
    "segquant_g", "rtn", "w4a8", "", True, "fid_ref[x]", "difference", -1.25, (-2.0, -0.5), 128, "pictures", "better"
)
LAYER = replace(FID, metric="layer error", kind="ratio", value=1.5, interval=(1.25, 1.75), n=88, pairs="layers")


def body(*comparisons: Comparison) -> list[str]:
    return [line for line in comparisons_markdown(comparisons, []).splitlines() if line.startswith(("- ", "## "))]


def test_csv_has_every_comparison_at_full_precision() -> None:
    value = 0.1 + 0.2
    found = [replace(FID, value=value, unit="dB", where="emoji_flux"), replace(LAYER, ours='a, "b"', headline=False)]
    first, second = csv.DictReader(io.StringIO(to_csv(comparisons_table(found))))
    assert float(first["value"]) == value and (float(first["value.low"]), float(first["value.high"])) == (-2.0, -0.5)
    assert (first["where"], first["precision"], first["a"], first["b"]) == ("emoji_flux", "w4a8", "segquant_g", "rtn")
    assert (first["kind"], first["unit"], first["n"], first["verdict"]) == ("difference", "dB", "128", "better")
    assert (second["a"], second["metric"], second["kind"], second["paired over"]) == (
        'a, "b"', "layer error", "ratio", "layers",
    )  # fmt: skip


def test_a_line_per_method_of_ours_and_main_number() -> None:
    worse = replace(LAYER, theirs="gptq", verdict="worse")
    tie = replace(FID, theirs="awq", value=0.0, interval=(-1.0, 1.0), verdict="not distinguishable")
    other = replace(FID, precision="w8a8")
    assert body(FID, replace(LAYER, value=0.5, interval=(0.4, 0.6)), tie, worse, other) == [
        "## w4a8",
        "- segquant_g, fid_ref[x]: better than rtn -1.25 [-2.00, -0.50]; "
        "not distinguishable from awq +0.00 [-1.00, +1.00]",
        "- segquant_g, layer error: better than rtn ×0.500 [0.400, 0.600]; worse than gptq ×1.500 [1.250, 1.750]",
        "## w8a8",
        "- segquant_g, fid_ref[x]: better than rtn -1.25 [-2.00, -0.50]",
    ]


def test_what_is_no_headline_is_in_the_csv_only() -> None:
    assert body(replace(FID, headline=False), replace(FID, metric="ssim"), replace(FID, metric="unheard_of")) == []
    text = comparisons_markdown([replace(FID, headline=False)], ["a vs b: no pictures"], "all.csv")
    assert "nothing to compare" in text and "All 1 comparisons" in text and "[all.csv](all.csv)" in text
    assert text.endswith("\n\nNot compared: a vs b: no pictures\n")


def test_runs_of_two_precisions_are_not_said_to_share_one() -> None:
    alike, two = ("\n".join(comparisons_markdown(found, []).split("\n")[:5]) for found in (
        [FID], [FID, replace(FID, precision="w4a8 against w8a8")],
    ))  # fmt: skip
    assert "same model, prompts, latents and precision, picture" in alike
    assert "same model, prompts and latents, picture" in two


@pytest.mark.parametrize("many", [False, True])
def test_of_many_others_only_the_names_are_told(many: bool) -> None:
    others = [replace(FID, theirs=f"tool{number}") for number in range(FEW + many)]
    _, line = body(*others)
    assert line.count("tool") == FEW + many
    assert line.count("[-2.00, -0.50]") == (0 if many else FEW)
