"""The store of results: the same runs as from the files, up to date after any change, and queries."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from segquant_bench.eval.cli import main
from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.results import RunResult, load_all, load_results
from segquant_bench.eval.store import STORE, Store
from tests.eval.sweep import run_record

METHODS = {"rtn": 24.0, "smoothquant": 16.0, "segquant_g": 8.0}
PSNR = {"name": "psnr", "n": 2, "direction": "higher", "backend": "numpy", "against": "reference", "unit": "dB"}


def _write(folder: Path, method: str, precision: str, sigma: float) -> Path:
    psnr = {**PSNR, "value": 60.0 - sigma, "interval": [59.0 - sigma, 61.0 - sigma]}
    if method == "none":
        psnr |= {"value": "inf", "interval": None}
    folder.mkdir(parents=True, exist_ok=True)
    record = run_record(method, precision, sigma, ["a cat", "a dog"], [psnr])
    (folder / "results.json").write_text(json.dumps(record))
    return folder / "results.json"


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    root = tmp_path / "sweep"
    _write(root / "none", "none", "w8a8", 0.0)
    for precision, factor in (("w8a8", 1.0), ("w4a8", 2.0)):
        for method, sigma in METHODS.items():
            _write(root / f"{method}_{precision}", method, precision, sigma * factor)
    return root


def _paths(root: Path) -> list[Path]:
    return sorted(root.glob("*/results.json"))


class Counted:
    """Which files the store reads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read: list[str] = []
        from segquant_bench.eval import store

        whole = store.checked_results

        def counted(path: Path) -> dict:
            self.read.append(path.parent.name)
            return whole(path)

        monkeypatch.setattr(store, "checked_results", counted)

    def taken(self) -> list[str]:
        found, self.read = self.read, []
        return found


def _plain(runs: list[RunResult]) -> list[RunResult]:
    return [replace(run) for run in runs]


def test_the_same_runs_as_from_the_files(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted, store, paths = Counted(monkeypatch), Store(sweep / STORE), _paths(sweep)
    assert store.load(paths) == load_all(paths) and len(counted.taken()) == 7
    assert store.load(paths) == load_all(paths) and not counted.taken()
    assert _plain(load_results([sweep], load=store.load)) == _plain(load_results([sweep]))


@pytest.mark.parametrize("change", ["content", "time", "new", "gone"])
def test_what_changed_is_read_again(sweep: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    store, path = Store(sweep / STORE), sweep / "rtn_w4a8" / "results.json"
    store.load(_paths(sweep))
    counted = Counted(monkeypatch)
    if change == "content":
        raw, stat = json.loads(path.read_text()), path.stat()
        path.write_text(json.dumps({**raw, "output_error": 0.123}))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    elif change == "time":
        os.utime(path, (1, 1))
    elif change == "new":
        _write(sweep / "gptq_w4a8", "gptq", "w4a8", 1.0)
    else:
        shutil.rmtree(path.parent)
    assert store.load(_paths(sweep)) == load_all(_paths(sweep))
    assert counted.taken() == {"gone": [], "new": ["gptq_w4a8"]}.get(change, ["rtn_w4a8"])
    count = {"new": 8, "gone": 6}.get(change, 7)
    assert store.query("SELECT count(*), count(DISTINCT path) FROM runs")[1] == [(count, count)]
    assert store.query("SELECT count(*) FROM metrics JOIN runs USING (run)")[1] == [(count,)]
    assert store.query("SELECT count(*) FROM metrics")[1] == store.query("SELECT count(*) FROM files")[1] == [(count,)]


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "version", "blob"])
def test_a_damaged_store_is_made_again(sweep: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(sweep / STORE)
    store.load(_paths(sweep))
    whole = store.path.read_bytes()
    if damage in ("version", "blob"):
        with sqlite3.connect(store.path) as connection:
            changed = "PRAGMA user_version = 99" if damage == "version" else "UPDATE files SET content = x'789c00'"
            connection.execute(changed)
        connection.close()
    else:
        store.path.write_bytes({"empty": b"", "text": b"hello" * 1000, "cut": whole[: len(whole) // 2]}[damage])
    assert store.load(_paths(sweep)) == load_all(_paths(sweep))
    assert store.query("SELECT count(*) FROM runs")[1] == [(7,)]
    assert sorted(path.name for path in sweep.iterdir() if path.is_file()) == [STORE]


def test_a_broken_file_is_refused_and_the_store_stays(sweep: Path) -> None:
    store = Store(sweep / STORE)
    store.load(_paths(sweep))
    before = store.path.read_bytes()
    (sweep / "rtn_w4a8" / "results.json").write_text("{}")
    with pytest.raises(EvalError, match=r"rtn_w4a8.results.json has schema null"):
        store.load(_paths(sweep))
    assert store.path.read_bytes() == before


def test_whole_numbers_beyond_64_bits(sweep: Path) -> None:
    """Where a number may be broken it is stored as one, elsewhere the file is refused in a sentence."""
    path = sweep / "none" / "results.json"
    record = json.loads(path.read_text())
    stages = {"generate": {"path": ".", "seconds": 10**29, "peak_memory_mb": 1, "key": "k", "cached": False}}
    config = {**record["config"], "calibration": {"seed": 10**400}}
    path.write_text(json.dumps(record | {"stages": stages, "config": config}))
    assert main([str(sweep), "--tables"]) == 0
    with sqlite3.connect(sweep / STORE) as connection:
        assert (1e29,) in connection.execute("SELECT seconds FROM stages").fetchall()
    for key in ("seed", "n_images", "weight_bytes"):
        path.write_text(json.dumps(record | {key: 2**63}))
        with pytest.raises(EvalError, match=f"holds {key} = {2**63}, which must be a whole number, .* below 2"):
            load_results([sweep])
    assert main([str(sweep), "--tables"]) == 1


def test_folder_and_store_move_together(sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(sweep / STORE).load(_paths(sweep))
    shutil.copytree(sweep, tmp_path / "moved")  # which keeps the times
    counted = Counted(monkeypatch)
    assert len(Store(tmp_path / "moved" / STORE).load(_paths(tmp_path / "moved"))) == 7 and not counted.taken()


def _query(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, str]]:
    assert main(list(arguments)) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_best_method_per_precision(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By a query as in the docs, against what the files say."""
    (sweep / "bad").mkdir()
    (sweep / "bad" / "failure.json").write_text(json.dumps({"schema": 1, "message": "out of memory", "tries": 3}))
    for name, best, value in (("psnr", "max", "value"), ("output_error", "min", "output_error")):
        sql = f"SELECT model, precision, quantizer, {best}({value}) AS best FROM runs JOIN metrics USING (run) "
        rows = _query(capsys, str(sweep), "--query", f"{sql} WHERE quantizer <> 'none' GROUP BY model, precision")
        wanted: dict[str, tuple[float, str]] = {}
        for run in load_results([sweep]):
            if not run.is_float:
                found = run.metrics[0].value if name == "psnr" else -(run.output_error or 0.0)
                wanted[run.precision] = max(wanted.get(run.precision, (-1e9, "")), (found, run.quantizer))
        assert {row["precision"]: row["quantizer"] for row in rows} == {key: name for key, (_, name) in wanted.items()}
        assert {row["precision"]: abs(float(row["best"])) for row in rows} == pytest.approx(
            {key: abs(value) for key, (value, _) in wanted.items()}
        )
    assert _query(capsys, str(sweep), "--query", "SELECT message, tries FROM failures") == [
        {"message": "out of memory", "tries": "3"}
    ]
    assert not list(sweep.glob("table.*")), "a query renders nothing"


@pytest.mark.parametrize("sql", ["SELECT nothing FROM runs", "DELETE FROM runs", "", "SELECT 1; SELECT 2"])
def test_queries_that_are_none(sweep: Path, capsys: pytest.CaptureFixture[str], sql: str) -> None:
    code = main([str(sweep), "--query", sql])
    told = capsys.readouterr()
    if sql:
        assert code == 2 and "the query is wrong" in told.err and "runs (run, path, name" in told.err
        assert told.err.count("\n") == 1
    assert Store(sweep / STORE).query("SELECT count(*) FROM runs")[1] == [(7,)]


def test_a_report_without_figures(sweep: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([str(sweep), "--figures", "none", "--no-grid", "--output", str(tmp_path / "report")]) == 0
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"table.md", "table.csv", "report.html", STORE} <= names and not {n for n in names if n.endswith(".png")}
