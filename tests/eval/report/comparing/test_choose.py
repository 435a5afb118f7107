"""Any two methods, compared by the user's choice."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from segquant_bench.eval import EvalError, load_results
from segquant_bench.eval.cli import main
from segquant_bench.eval.report.comparing.choose import Choice
from segquant_bench.eval.report.comparing.comparisons import adjusted, compare_chosen
from segquant_bench.eval.report.runs.seeds import merge_seeds
from segquant_bench.eval.results import RunResult
from tests.eval.report.support import psnr, run, seeded, write

LEVELS = {"rtn": 30.0, "gptq": 32.0, "awq": 31.0, "segquant_g": 33.0}
NOISE = np.random.default_rng(0).normal(size=(len(LEVELS), 40))


def _pictures(name: str, lost: float = 0.0) -> list[float]:
    return list(LEVELS[name] - lost + 0.1 * NOISE[list(LEVELS).index(name)])


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for number, (name, precision) in enumerate((name, at) for name in LEVELS for at in ("w8a8", "w4a8")):
        values = _pictures(name, 5.0 * (precision == "w4a8"))
        made = run(
            number, name, precision=precision, prompts=tuple("ab"), metrics=(psnr(float(np.mean(values))),),
            weight_bytes=1100 if name == "gptq" else 1000,
        )  # fmt: skip
        if (name, precision) != ("awq", "w4a8"):
            write(tmp_path / "sweep" / str(number), made, {"psnr": values})
    return tmp_path / "sweep"


def _pairs(sweep: Path, **choice: object) -> tuple[set[tuple[str, str, str]], list[str]]:
    found, refused = compare_chosen(load_results([sweep]), Choice(**choice))
    return {(each.precision, each.ours, each.theirs) for each in found}, refused


def test_everything_against_one(sweep: Path) -> None:
    pairs, refused = _pairs(sweep, baseline="gptq")
    assert pairs == {
        ("w8a8", "rtn", "gptq"), ("w8a8", "awq", "gptq"), ("w8a8", "segquant_g", "gptq"),
        ("w4a8", "rtn", "gptq"), ("w4a8", "segquant_g", "gptq"),
    }  # fmt: skip
    assert refused == []
    pairs, refused = _pairs(sweep, baseline="awq")
    assert {at for at, _, _ in pairs} == {"w8a8"}
    assert refused == ["runs at w4a8 with awq, which has no run beside them"]


def test_values_are_those_of_the_pictures(sweep: Path) -> None:
    found, _ = compare_chosen(load_results([sweep]), Choice(pairs=("rtn:awq",)))
    gaps = np.array(_pictures("rtn")) - np.array(_pictures("awq"))
    assert [each.value for each in found] == pytest.approx([gaps.mean()]) and found[0].verdict == "worse"
    assert (found[0].ahead, found[0].size_ratio, found[0].headline) == ("b", 1.0, True)


def test_a_lead_with_more_bytes_is_none(sweep: Path) -> None:
    found, _ = compare_chosen(load_results([sweep]), Choice(pairs=("gptq:rtn", "segquant_g:gptq")))
    assert [(each.verdict, each.ahead) for each in found if each.precision == "w8a8"] == [
        ("better", ""),
        ("better", "a"),
    ]


def test_pairs_across_precisions_name_them(sweep: Path) -> None:
    pairs, _ = _pairs(sweep, pairs=("segquant_g at w4a8:rtn at w8a8", "gptq:segquant_g at w4a8"))
    assert pairs == {
        ("w4a8 against w8a8", "segquant_g", "rtn"), ("w8a8 against w4a8", "gptq", "segquant_g"),
        ("w4a8", "gptq", "segquant_g"),
    }  # fmt: skip
    assert ("w8a8 against w4a8", "rtn", "gptq") in _pairs(sweep, baseline="gptq at w4a8")[0]


def _variants() -> list[RunResult]:
    return [run(job, "rtn", config={"quantizer": {"alpha": job, "cut": "a:b"}}) for job in range(2)]


def test_labels_with_settings_and_colons() -> None:
    runs = [*_variants(), run(2, "x:y", layer_errors={"a": 0.1, "b": 0.3})]
    runs = [replace(each, layer_errors={"a": 0.1, "b": 0.2}) for each in runs]
    found, _ = compare_chosen(runs, Choice(pairs=("x:y:rtn alpha=1",)))
    assert {(each.ours, each.theirs) for each in found} == {("x:y", "rtn alpha=1")}
    with pytest.raises(EvalError, match="'rtn' is the method of several runs: rtn alpha=0, rtn alpha=1; name one"):
        compare_chosen(runs, Choice(baseline="rtn"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--baseline", "gptk"], "no run is called 'gptk'; did you mean 'gptq'?"),
        (["--pairs", "gptq"], "--pairs takes two methods with a colon between, A:B; 'gptq' was given"),
        (["--pairs", "gptq:"], "--pairs takes two methods"),
        (["--pairs", "awq at w8a8:nothing"], "no run is called 'nothing'"),
        (["--pairs", "awq:awq"], "no runs of the same model, prompts, latents and precision"),
    ],
)
def test_a_wrong_name_is_one_sentence(
    sweep: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert main([str(sweep), "--no-grid", *arguments]) == 2
    told = capsys.readouterr().err.strip()
    assert sentence in told and "\n" not in told and not (sweep / "table.md").exists()


def test_the_report_says_how_many_it_made_and_adjusts(sweep: Path, tmp_path: Path) -> None:
    counts = {}
    for adjustment in ("holm", "fdr"):
        out = tmp_path / adjustment
        assert main([str(sweep), "--no-grid", "--baseline", "rtn", "--adjust", adjustment, "--output", str(out)]) == 0
        rows = list(csv.DictReader((out / "comparisons.csv").read_text().splitlines()))
        text = (out / "comparisons.md").read_text()
        assert f"{len(rows)} comparisons were made" in text and "the chosen methods" in text
        assert f"{len(rows)} comparisons were made" in (out / "report.html").read_text()
        assert all(float(row["adjusted p"]) >= float(row["p"]) for row in rows)
        counts[adjustment] = text.partition("adjusted by ")[2].partition(" are.")[0]
    assert counts["holm"].startswith("Holm") and "false discovery rate" in counts["fdr"]


def test_what_does_not_pass_together_is_not_distinguishable(sweep: Path) -> None:
    found, _ = compare_chosen(load_results([sweep]), Choice(pairs=("rtn:awq",)))
    (one,) = found
    near = replace(one, value=-0.5, interval=(-0.95, -0.05))
    assert 0.01 < near.p < 0.05
    assert (
        adjusted([near], "holm")[0].verdict == "worse"
        and adjusted([near] * 2, "holm")[0].verdict == "not distinguishable"
    )


def test_seeds_are_compared_with_their_own(tmp_path: Path) -> None:
    """Ours at seeds 0, 1, 2 against theirs at 1, 2, 3: the pairs of seeds 1 and 2."""
    noise = np.random.default_rng(1).normal(size=(8, 40))
    values = {}
    for number, (name, seed) in enumerate(
        (name, s) for name, first in (("gptq", 0), ("rtn", 1)) for s in range(first, first + 3)
    ):
        values[name, seed] = 30.0 + 2.0 * (name == "gptq") + 0.2 * seed * (name == "gptq") + 0.1 * noise[number]
        made = seeded(number, name, seed, metrics=(psnr(float(values[name, seed].mean())),))
        write(tmp_path / str(number), made, {"psnr": list(values[name, seed])})
    runs = merge_seeds(load_results([tmp_path]))
    assert len(runs) == 2
    ((found,), refused) = compare_chosen(runs, Choice(pairs=("gptq:rtn",)))
    gaps = [(values["gptq", seed] - values["rtn", seed]).mean() for seed in (1, 2)]
    assert refused == [] and (found.seeds, found.count, found.n) == (2, "40 × 2 seeds", 40)
    assert found.value == pytest.approx(np.mean(gaps)) and found.sd == pytest.approx(np.std(gaps, ddof=1))
    half = 12.706 * np.std(gaps, ddof=1) / np.sqrt(2)  # Student's quantile of one degree of freedom
    assert half < found.value - found.interval[0] < 1.1 * half
    shutil.copytree(tmp_path, tmp_path / "copy")
    next((tmp_path / "copy" / "3").rglob("per_image.json")).unlink()  # of rtn, seed 1
    copied = merge_seeds(load_results([tmp_path / "copy"]))
    ((left,), refused) = compare_chosen(copied, Choice(pairs=("gptq:rtn",)))
    assert len(refused) == 1 and "leads to no per_image.json" in refused[0]
    assert (left.seeds, left.count) == (1, "40")
    assert left.value == pytest.approx(gaps[1]) and left.sd is None
    alone = [each for each in runs if each.quantizer == "gptq"] + [
        replace(run_, seed_runs=run_.seed_runs[2:]) for run_ in runs if run_.quantizer == "rtn"
    ]
    found_none, refused = compare_chosen(alone, Choice(pairs=("gptq:rtn",)))
    assert found_none == [] and refused == ["gptq vs rtn at w8a8: they share no calibration seed"]
