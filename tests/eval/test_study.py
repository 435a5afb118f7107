"""Searches in reports: the front against its definition, and what stands in table and page."""

from __future__ import annotations

import csv
import io
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.render import write_report
from segquant_bench.eval.report.page.searches import searches_data
from segquant_bench.eval.study import FILE, Search, Trial, front_table, load_searches, trials_table
from tests.eval.sweep import run_record


def _trial(number: int, values: tuple[float, ...], state: str = "complete") -> Trial:
    return Trial(number, f"{number}_rtn", state, values, {"quantizer": "rtn"}, 0.1)


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_no_other_trial_beats(seed: int) -> None:
    draw = random.Random(seed)
    count = draw.choice([1, 2, 3])
    ways = {f"x{index}": draw.choice(["minimize", "maximize"]) for index in range(count)}
    choices = [0.0, 1.0, 2.0, 3.0, float("inf")]  # many ties
    trials = [_trial(number, tuple(draw.choice(choices) for _ in ways)) for number in range(15)]
    trials += [_trial(15, (), "failed"), _trial(16, (), "pruned")]

    def beats(one: Trial, other: Trial) -> bool:
        pairs = [
            (a, b) if way == "minimize" else (b, a)
            for a, b, way in zip(one.values, other.values, ways.values(), strict=True)
        ]
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    wanted = [trial.number for trial in trials[:15] if not any(beats(other, trial) for other in trials[:15])]
    assert [trial.number for trial in Search(Path(FILE), ways, tuple(trials)).front()] == wanted


def _write(folder: Path, found: list[dict[str, Any]], **more: Any) -> Path:
    record = {"schema": 1, "objectives": {"output_error": "minimize", "psnr": "maximize"}, "trials": found, **more}
    (folder / FILE).write_text(json.dumps(record))
    return folder


def _record(number: int, values: list[Any], state: str = "complete", **params: Any) -> dict[str, Any]:
    return {"number": number, "folder": f"{number}_rtn", "state": state, "values": values, "params": params}


def test_the_report_has_the_front(tmp_path: Path) -> None:
    (tmp_path / "0_rtn").mkdir()
    (tmp_path / "0_rtn" / "results.json").write_text(json.dumps(run_record("rtn", "w8a8", 8.0, ["a cat"], [])))
    points = [[0.3, 30.0], [0.1, 20.0], [0.4, 10.0], [0.2, "inf"]]
    trials = [_record(number, values, quantizer=f"method{number}") for number, values in enumerate(points)]
    trials += [_record(4, [], "pruned", quantizer="method4"), _record(5, [], "fail", **{"++components.x.y": 0.5})]
    write_report([_write(tmp_path, trials)], grid=False)
    table = (tmp_path / "table.md").read_text()
    assert "Search of output_error and psnr: what no other trial beats (of 4 complete, 1 fail, 1 pruned)" in table
    front = table[table.index("Search of") :]
    assert front.index("method1") < front.index("method3") and "method0" not in front and "method2" not in front
    assert "method3" in (tmp_path / "report.html").read_text()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "study.csv").read_text())))
    assert [row["front"] for row in rows] == ["", "yes", "", "yes", "", ""]
    assert rows[4]["state"] == "pruned" and rows[5]["components.x.y"] == "0.5"


def test_tables_have_six_digits_and_the_csv_all(tmp_path: Path) -> None:
    alphas = [0.5841694527491272, 0.25, 0.7654321, 0.7654322]
    trials = [_record(number, [0.1, 20.0], **{"quantizer.alpha": alpha}) for number, alpha in enumerate(alphas)]
    (search,) = load_searches([_write(tmp_path, trials)])
    told = [[cell.text for cell in row[:2]] for row in front_table(search).rows]
    assert told == [["0", "0.584169"], ["1", "0.25"], ["2", "0.7654321"], ["3", "0.7654322"]]
    assert trials_table(search).rows[0][1].text == "0.5841694527491272"
    page = searches_data([search], {}, tmp_path)
    assert [each["told"] for each in page[0]["trials"]][0] == "quantizer.alpha=0.584169"


@pytest.mark.parametrize(("key", "value"), list(itertools.product(
    ["schema", "objectives", "trials"], [None, [], {}, "x", 3, {"a": "b"}, [{}]],
)))  # fmt: skip
def test_a_broken_file_is_told_in_a_sentence(tmp_path: Path, key: str, value: Any) -> None:
    _write(tmp_path, [_record(0, [0.1, 2.0])], **{key: value})
    right = (key == "trials" and value == []) or (key == "objectives" and value == {})
    if right:
        assert load_searches([tmp_path])
        return
    with pytest.raises(EvalError, match=r"study\.json .*the same command writes it anew"):
        load_searches([tmp_path])
