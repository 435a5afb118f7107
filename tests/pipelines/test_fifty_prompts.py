"""Fifty prompts of the kind that people type, through a sweep with its report, W&B, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segquant_bench.texts import plain
from tests.odd_texts import PROMPTS
from tests.pipelines.conftest import Command, Tiny
from tests.pipelines.loggers.offline import read_offline

NAME = "m_a_.b-1"


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.scripts: list[str | None] = []
        self.heading = self.place = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "script":
            self.scripts.append(dict(attrs).get("type"))
        self.place = tag

    def handle_data(self, data: str) -> None:
        self.heading += data if self.place == "h1" else ""


def _table(folder: Path) -> Path:
    with (folder / "prompts.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("prompt", "split"), *((prompt, "evaluation") for prompt in PROMPTS)])
        writer.writerows((f"a shape\n{number}", "calibration") for number in range(6))
    return folder / "prompts.csv"


def test_a_whole_sweep(command: Command, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = [item for item in tiny.overrides(tmp_path / "cache") if not item.startswith(("dataset", "logger"))]
    data = ["dataset=folder", f"dataset.table={_table(tmp_path)}", "dataset.pictures=false", "dataset.name='=SUM(A1)'"]
    sink = ["logger=wandb", "logger.images=50", "logger.artifact=true", "metric.metrics=[psnr]"]
    small = ["model.call.num_inference_steps=1", "calibration.steps_per_prompt=1", "model.batch_size=25"]
    outcome = command("-m", *run, *data, *sink, *small, "quantizer=none,rtn", f"model.name='{NAME}'")
    assert outcome.code == 0, outcome.err
    assert "\x1b" not in outcome.err and "Traceback" not in outcome.err
    paths = sorted(outcome.folder.glob("*/results.json"))
    results = [json.loads(path.read_text()) for path in paths]
    assert [one["quantizer"] for one in results] == ["none", "rtn"]
    assert all(one["prompts"] == [prompt.strip() for prompt in PROMPTS] and one["model"] == NAME for one in results)
    assert all(len(list((path.parent / "images").glob("*.png"))) == 50 for path in paths)
    _check_report(outcome.folder)
    logged = read_offline(paths[1].parent)
    assert logged.run.display_name == plain(f"{NAME} rtn_w8a8_tensor")
    assert logged.history["images/captions"] == [plain(prompt.strip()) for prompt in PROMPTS]
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in (tmp_path / "cache" / "stage").rglob("*.safetensors"))


def _check_report(folder: Path) -> None:
    page = _Page()
    page.feed((folder / "report.html").read_text(encoding="utf-8"))
    assert page.heading.strip() == f"Quantization of {plain(NAME)}" and not page.tags & {"i", "m"}
    kinds = {"application/json", "text/plain"}
    assert page.scripts.count(None) == 1 and {kind for kind in page.scripts if kind} == kinds, "one of ours that runs"
    with Image.open(folder / "grid.png") as grid:
        assert np.asarray(grid.convert("L"))[:, :190].min() < 100, "prompts stand on the left"
    rows = list(csv.DictReader(io.StringIO((folder / "table.csv").read_text(encoding="utf-8"))))
    assert [(row["model"], row["dataset"]) for row in rows] == [(plain(NAME), "'=SUM(A1)")] * 2
    for name in ("table.tex", "layers.tex"):
        latex = re.sub(r"(?m)^%.*\n", "", (folder / name).read_text(encoding="utf-8"))
        assert latex.count("{") == latex.count("}") and set(re.findall(r"(?m)^[^\\&]*$", latex)) <= {""}
    for name in ("table.md", "comparisons.md", "layers.md"):
        text = (folder / name).read_text(encoding="utf-8")
        assert "<b>m" not in text.replace(r"\<b>m", "") and "\u202e" not in text and "\u2028" not in text
