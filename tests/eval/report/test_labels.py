"""Tables put our methods last and compare them with the others, so they must know which are ours."""

from __future__ import annotations

from pathlib import Path

from segquant_bench.eval.report.known import OURS, is_ours, method_rank

QUANTIZERS = Path(__file__).parents[3] / "conf" / "quantizer"


def test_every_method_of_ours_is_known_as_such() -> None:
    ours = {path.stem for path in QUANTIZERS.glob("segquant_*.yaml")} | {"auto", "plan"}
    assert set(OURS) == ours


def test_ours_come_after_other_tools_in_their_own_order() -> None:
    names = ["auto", "torchao_int8_static", "segquant_r", "quarot", "segquant_a", "rtn"]
    assert sorted(names, key=method_rank) == [
        "rtn", "quarot", "torchao_int8_static", "segquant_a", "segquant_r", "auto",
    ]  # fmt: skip
    assert is_ours("segquant_r +rotate") and not is_ours("segquant_rx")
