"""Tables put our methods last and compare them with the others, so they must know which are ours."""

from __future__ import annotations

from pathlib import Path

from segquant_bench.eval.report.main_table.results_table import results_table
from segquant_bench.eval.report.runs.known import OURS, is_ours, method_rank, precision_rank
from segquant_bench.eval.results import RunResult

QUANTIZERS = Path(__file__).parents[4] / "conf" / "quantizer"


def test_every_method_of_ours_is_known_as_such() -> None:
    ours = {path.stem for path in QUANTIZERS.glob("segquant_*.yaml")} | {"auto", "plan"}
    assert set(OURS) == ours


def test_ours_come_after_other_tools_in_their_own_order() -> None:
    names = ["auto", "torchao_int8_static", "segquant_r", "quarot", "segquant_a", "rtn"]
    assert sorted(names, key=method_rank) == [
        "rtn", "quarot", "torchao_int8_static", "segquant_a", "segquant_r", "auto",
    ]  # fmt: skip
    assert is_ours("segquant_r +rotate") and not is_ours("segquant_rx")


def test_unknown_precisions_and_methods_come_after_the_known_ones_by_name() -> None:
    precisions = ["w2a16_mine", "w4a16", "a_format", "w8a8_tensor"]
    assert sorted(precisions, key=precision_rank) == ["w8a8_tensor", "w4a16", "a_format", "w2a16_mine"]
    methods = ["their_pkg.method", "tac", "segquant_a", "another"]
    assert sorted(methods, key=method_rank) == ["tac", "another", "their_pkg.method", "segquant_a"]


def test_somebody_elses_method_is_not_ours_for_its_first_letters() -> None:
    assert [is_ours(name) for name in ("auto-round", "planar", "segquant_g.py", "plan b", "segquant_g@vae")] == [
        False, False, False, True, True,
    ]  # fmt: skip


def _run(job: int, quantizer: str, precision: str) -> RunResult:
    return RunResult(
        path=Path(f"/nowhere/{job}/results.json"), name=quantizer, model="m", quantizer=quantizer, precision=precision,
        dataset="d", seed=0, n_images=1, config_hash=str(job), metrics=(), layer_errors={}, per_row_output_errors=(),
        output_error=None, stages={}, artifacts={}, prompts=("a",), weight_bytes=1, weight_bytes_float=1,
    )  # fmt: skip


def test_rows_of_unknown_names_are_stable_and_go_by_their_own_names() -> None:
    pairs = [
        ("w8a8", "tac"), ("w8a8", "another"), ("w8a8", "their_pkg.method"), ("w8a8", "auto"),
        ("fp8", "rtn"), ("a_format", "rtn"), ("w2a16_mine", "their_pkg.method"),
    ]  # fmt: skip
    runs = [_run(job, quantizer, precision) for job, (precision, quantizer) in enumerate(pairs)]
    for order in (runs, runs[::-1], runs[3:] + runs[:3]):
        table = results_table(order)
        assert [(line[0].text, line[1].text) for line in table.rows] == pairs
