"""docs/main from a few made-up runs: the numbers are those of the results, what has not run is left out."""

from __future__ import annotations

import json
import shutil
import statistics
import tarfile
from itertools import product
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")

from benchmarks import main_page, main_tables, pages, synthetic_runs
from segquant_bench.eval.tables.table import Cell

METHODS = ("rtn", "gptq_mse", "smoothquant", "svdquant_gptq", "segquant_plus", "auto")
MARKS = ("jobs", "first", "pairs")
MEGABYTES = 14.2


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some methods at w8a8_tensor: two by three calibration seeds, `auto` by two budgets, and two tools."""
    root = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic_runs, "METHODS", METHODS)
        patch.setattr(synthetic_runs, "PRECISIONS", {"w8a8_tensor": (1.0, 0.26), "w8a8": (1.0, 0.26)})
        synthetic_runs.write_runs(root, 1 + len(METHODS))
    for seed, method in product((1, 2), ("gptq_mse", "segquant_plus")):
        _copy(root, method, {"calibration": {"seed": seed}}, 1.0 + 0.1 * seed)
    _copy(root, "auto", {"quantizer": {"budget": {"bytes": 1.0, "operations": 1.5, "average_bits": None}}}, 1.3)
    for tool, times in (("quanto", 1.5), ("sdnq", 2.0)):
        _copy(root, "rtn", {"quantizer": {"_target_": f"segquant_bench.pipelines.peers.{tool}"}}, times, tool)
    return root


def _copy(root: Path, source: str, config: dict[str, Any], times: float, method: str = "") -> None:
    """Another run with other settings, and errors of so many times the size."""
    (folder,) = root.glob(f"*_{source}_w8a8_tensor")
    copy = folder.with_name(f"{folder.name}_{times}")
    shutil.copytree(folder, copy, symlinks=True)
    run = json.loads((folder / "results.json").read_text())
    for section, values in config.items():
        run["config"][section] = {**run["config"][section], **values}
    for metric in run["metrics"]:
        metric["value"] *= times
    run["output_error"] *= times
    run["per_row_output_errors"] = [error * times for error in run["per_row_output_errors"]]
    run |= {"config_hash": f"{run['config_hash']}{times}", "weight_bytes": round(MEGABYTES * 1e6)}
    if method:
        run |= {"quantizer": method, "name": f"{method}_w8a8_tensor"}
    (copy / "results.json").write_text(json.dumps(run))


@pytest.fixture(scope="module")
def page(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _made(sweep, tmp_path_factory.mktemp("page"))


def _made(directory: Path, out: Path) -> Path:
    text = "".join(f"<!-- table: {mark} -->\n<!-- end of table -->\n" for mark in MARKS)
    (out / "README.md").write_text(f"# Page\n{text}")
    main_page.main([str(directory), "--out", str(out)])
    return out


def _rows(page: Path, head: str) -> list[list[str]]:
    lines = (page / "README.md").read_text().split(head, 1)[1].split("<!-- end")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def _results(sweep: Path, name: str) -> list[dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in sweep.glob("*/results.json")]
    return [run for run in found if run["name"] == f"{name}_w8a8_tensor"]


def test_rows_are_in_the_order_of_bytes_without_what_has_not_run(sweep: Path, page: Path) -> None:
    rows = _rows(page, "| precision | method |")
    names = [row[1] for row in rows]
    assert sorted(names) == sorted(
        ["rtn", "gptq_mse", "segquant_plus", "auto, 1.0 × bytes", "auto, 1.1 × bytes", "quanto (tool)"]
    ), "smoothquant is no method of this table, svdquant_gptq one of 4 bits, sdnq has a higher fid_ref than quanto"
    sizes = [float(row[3]) for row in rows]
    assert sizes == sorted(sizes) and [row[0] for row in rows] == ["w8a8_tensor", *[""] * 5]
    count = len(list(sweep.glob("*/results.json")))
    assert f"Made of {count} of {len(pages.jobs('main'))} jobs" in (page / "README.md").read_text()


def test_numbers_are_those_of_the_results(sweep: Path, page: Path) -> None:
    rows = {row[1]: row for row in _rows(page, "| precision | method |")}
    (rtn,) = _results(sweep, "rtn")
    for place, name in ((4, "fid_ref[effnet_lite0]"), (5, "psnr")):
        (metric,) = [each for each in rtn["metrics"] if each["name"] == name]
        low, high = map(pages.figures, metric["interval"])
        assert rows["rtn"][place] == f"{pages.figures(metric['value'])} [{low}, {high}]"
    assert rows["rtn"][7].startswith(f"{pages.figures(rtn['output_error'])} [") and rows["rtn"][2] == "1"
    assert float(rows["rtn"][8]) == sum(rtn["stages"][name]["seconds"] for name in rtn["quantizing"])
    seeds = [run["output_error"] for run in _results(sweep, "gptq_mse")]
    told = f"{pages.figures(statistics.fmean(seeds))} ± {pages.figures(statistics.stdev(seeds), 2)} ["
    assert len(seeds) == 3 and rows["gptq_mse"][2] == "3" and rows["gptq_mse"][7].startswith(told)


def test_pairs_are_adjusted_for_no_others(page: Path) -> None:
    rows = _rows(page, "| pair | precision |")
    assert [row[0] for row in rows] == [
        "segquant_plus against svdquant_gptq", "segquant_plus against gptq_mse",
        "auto, 1.0 × bytes against gptq_mse", "auto, 1.1 × bytes against gptq_mse"
    ]  # fmt: skip
    compared = pages.read_csv(page / "pairs.csv")
    labels = ("segquant_plus", "segquant_plus", "auto budget.bytes=1.0", "auto budget.bytes=1.1")
    for row, label in zip(rows, labels, strict=True):
        other = row[0].partition(" against ")[2]
        pairs = {pair["metric"]: pair for pair in compared if (pair["a"], pair["b"]) == (label, other)}
        cells = [pairs["psnr"], pairs["fid_ref[effnet_lite0]"], pairs["output error"]]
        assert row[3:] == [main_tables.pair_text(pair) for pair in cells]
        assert abs(float(row[2]) - float(pairs["psnr"]["bytes"])) < 0.006
    every = {(pair["a"], pair["b"], pair["metric"]): pair for pair in pages.read_csv(page / "comparisons.csv")}
    assert len(compared) < len(every)
    for pair in compared:
        other = every[pair["a"], pair["b"], pair["metric"]]
        assert pair["value"] == other["value"] and float(pair["adjusted p"]) <= float(other["adjusted p"])


def test_the_archive_makes_the_page_again(page: Path, tmp_path: Path) -> None:
    with tarfile.open(page / "results.tar.xz") as file:
        file.extractall(tmp_path / "runs", filter="data")
    (tmp_path / "again").mkdir()
    again = _made(tmp_path / "runs", tmp_path / "again")
    names = {path.name for path in page.iterdir()}
    assert (
        names
        == {"README.md", "results.tar.xz", "pairs.csv", *main_page.MADE}
        == {path.name for path in again.iterdir()}
    )
    for name in ("README.md", "table.md", "comparisons.csv", "comparisons.md", "pairs.csv", "results.tar.xz"):
        assert (again / name).read_bytes() == (page / name).read_bytes(), name


def test_cells_and_standings() -> None:
    cell = Cell("", True, 0.0347, (0.0294, 0.0403), sd=0.00136)
    assert main_tables.cell_text(cell, "output error") == "**.0347** ± .0014 [.0294, .0403]"
    assert (
        main_tables.cell_text(cell, "weights").startswith("**.0347** [") and main_tables.cell_text(None, "psnr") == "–"
    )
    pair = {"metric": "output error", "kind": "ratio", "value": ".9", "value.low": ".85", "value.high": ".95",
            "bytes": "1.001", "adjusted p": "1e-9", "ahead": "a"}  # fmt: skip
    assert main_tables.pair_text(pair) == "×0.900 [0.850, 0.950], p < .001: **ahead**"
    assert main_tables.pair_text({**pair, "adjusted p": "1", "ahead": ""}).endswith("p = 1: ahead")
    assert main_tables.standing({**pair, "bytes": "1.17"}) == "better, with more bytes"
    assert main_tables.standing({**pair, "value.high": "1.01"}) == "level"
    assert main_tables.standing({**pair, "metric": "psnr"}) == "behind"
    assert main_tables.standing({**pair, "metric": "psnr", "bytes": ".9"}) == "worse, with fewer bytes"


def test_families_tell_the_controlnet_apart() -> None:
    """Runs that the archive calls by one name would replace each other."""
    run: dict[str, Any] = {"model": "m", "name": "auto_w4a8", "quantizer": "auto",
                           "config": {"calibration": {"seed": 2}, "quantizer": {"budget": {"bytes": 1.1}}}}  # fmt: skip
    assert main_page.archived_name(run) == "m/auto_w4a8_seed2"
    config = {**run["config"], "quantize": ["controlnet"], "quantizer": {"budget": {"bytes": 1.2, "average_bits": 4.5}}}
    assert main_page.archived_name({**run, "config": config}) == "m/auto_w4a8_seed2_controlnet_bytes1.2_average_bits4.5"
    assert main_page.jobs_line("families", 3) == "Made of 3 of 88 jobs of `experiment=families`.\n"
    with pytest.raises(SystemExit, match="89 runs are more than the 88 jobs"):
        main_page.jobs_line("families", 89)
