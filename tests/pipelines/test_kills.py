"""A sweep that is killed at random moments: the same bytes in the end, and one batch or layer lost by each kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.conftest import Tiny

ROOT = Path(__file__).resolve().parents[2]


def _stages(folder: Path) -> dict[str, Any]:
    """Sizes and digests of all files, by stage."""
    places = [path for path in (folder / "cache" / "stage").iterdir() if path.suffix != ".lock"]
    return {path.name: json.loads((path / "stage.json").read_text())["files"] for path in places}


def _results(folder: Path) -> dict[str, Any]:
    found = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("sweep/*/results.json")}
    return {name: [one["metrics"], one["layer_errors"], one["config_hash"]] for name, one in found.items()}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that share what is imported")
@pytest.mark.parametrize(
    ("kills", "quantizers"),
    [pytest.param(3, "gptq", id="few"), pytest.param(50, "rtn,segquant_g", id="many", marks=pytest.mark.slow)],
)
def test_kills(tiny: Tiny, tmp_path: Path, kills: int, quantizers: str) -> None:
    settings = ["model.batch_size=1", "calibration.batch_size=1", "precision=w8a8_tensor", "report=false"]
    overrides = [each for each in tiny.overrides(tmp_path) if not each.startswith("cache=")]
    subprocess.run(
        [sys.executable, "-m", "tests.pipelines.killing", str(tmp_path / "runs"), str(kills), "1", "-m",
         f"quantizer={quantizers}", *settings, *overrides],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, check=True,
    )  # fmt: skip
    whole = tmp_path / "runs" / "whole"
    expected, results = _stages(whole), _results(whole)
    assert {name.partition("-")[0] for name in expected} >= {
        "reference",
        "calibrate",
        "quantize",
        "generate",
        "evaluate",
    }
    assert len(results) == len(quantizers.split(","))
    units = set((whole / "work").read_text().splitlines())
    assert {unit.split()[1] for unit in units} == {"batch", "layer", "observe", "error"}
    killed = json.loads((tmp_path / "runs" / "kills.json").read_text())
    assert sum(map(len, killed)) == kills
    assert sum(lines > 0 for times in killed for lines in times) >= kills // 3, "kills meet work, and not imports alone"
    for number, times in enumerate(killed):
        folder = tmp_path / "runs" / str(number)
        assert _stages(folder) == expected
        assert _results(folder) == results
        begun = Counter((folder / "work").read_text().splitlines())
        assert begun.keys() == units
        again = {unit: count - 1 for unit, count in begun.items() if count > 1}
        assert sum(again.values()) <= len(times), again
