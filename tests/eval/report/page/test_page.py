"""The page as text: what needs no browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segquant_bench.eval.failures import Failure
from segquant_bench.eval.report.page import pictures
from segquant_bench.eval.report.page.embed import ASSETS, SCRIPTS, script, to_json
from segquant_bench.eval.report.page.links import config_link, folder_link
from segquant_bench.eval.report.page.pictures import picture_sets
from segquant_bench.eval.report.page.render import Page, render_page
from segquant_bench.eval.report.page.rows import page_table
from segquant_bench.eval.results import RunResult
from tests.eval.report.page.support import PageReader
from tests.eval.report.support import psnr, run
from tests.eval.support import noisy, smooth_pictures, write_pictures
from tests.odd_texts import NAMES, PROMPTS

FAILED = Failure(Path("/nowhere/f/failure.json"), "n", "m", "d", "w8a8", "0", ("a=1",), "</td>why")


def _runs(root: Path, size: int = 16) -> list[RunResult]:
    clean = smooth_pictures(4, size, seed=0)
    write_pictures(root / "reference", clean)
    found = []
    for job, name in enumerate(("rtn", "segquant_g")):
        folder = root / str(job)
        write_pictures(folder / "images", noisy(clean, 9.0 - job, seed=1))
        artifacts = {"images": "images", "reference": "../reference"}
        metrics = (psnr(30.0 + job, (29.0, 33.0)),)
        found.append(run(job, name, path=folder / "results.json", artifacts=artifacts, prompts=("a", "b", "c", "d"),
                         metrics=metrics))  # fmt: skip
    return found


def test_json_cannot_end_its_element() -> None:
    for text in (*NAMES, *PROMPTS, "</script>", "<!--<script>", "]]>&amp;"):
        found = to_json({"text": [text]})
        assert not set("<>&\u2028\u2029") & set(found) and found.isascii()
        json.loads(found)
    assert json.loads(to_json(["</a>&", float("inf"), -float("inf"), 1.5, None])) == ["</a>&", "inf", "-inf", 1.5, None]


def test_all_modules_are_in_the_script_and_none_writes_html() -> None:
    assert {path.stem for path in ASSETS.glob("*.js")} == set(SCRIPTS)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|fetch\(|import\(", script())
    assert "</script" not in script() and len(script()) < 60_000


def test_the_policy_lets_the_one_script_run_and_nothing_load(tmp_path: Path) -> None:
    read = PageReader(render_page(Page(_runs(tmp_path), (), tmp_path)))
    policy = next(found["content"] for tag, found in read.tags if tag == "meta" and "http-equiv" in found)
    digest = base64.b64encode(hashlib.sha256(read.scripts[""].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and policy.startswith("default-src 'none'")


def test_every_part_can_be_told_by_ear(tmp_path: Path) -> None:
    page = Page(_runs(tmp_path), (), tmp_path, failures=[FAILED], legend="**x**", rows=2)
    read = PageReader(render_page(page))
    assert all(found.get("scope") in ("col", "row", "rowgroup") for tag, found in read.tags if tag == "th")
    assert read.count("caption") == read.count("table") == 2
    assert {"header", "nav", "main", "footer"} <= {tag for tag, _ in read.tags}
    assert all("aria-labelledby" in found or "aria-label" in found for tag, found in read.tags if tag == "section")
    assert all(found.get("alt") for tag, found in read.tags if tag == "img") and read.count("img") == 2 * 3
    assert read.texts["title"] == read.texts["h1"] == ["Quantization of m"]
    assert "</td>why" in "".join(read.texts["td"])


def test_pictures_are_the_files_without_loss_and_small_where_they_are_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = page_table(_runs(tmp_path))
    (found,) = picture_sets(table, 4)
    assert found.indices == (0, 1, 2, 3) and [strip.row for strip in found.strips] == [None, 0, 1]
    for strip, folder in zip(found.strips, ("reference", "0/images", "1/images"), strict=True):
        for index, content in zip(found.indices, strip.pictures, strict=True):
            (tmp_path / "x.png").write_bytes(base64.b64decode(content))
            with Image.open(tmp_path / "x.png") as mine, Image.open(tmp_path / folder / f"{index:05d}.png") as theirs:
                assert np.array_equal(np.asarray(mine), np.asarray(theirs))
    assert [strip.folder for strip in found.strips] == ["", "images", "images"]
    size = sum(len(strip.pictures[0]) * 3 // 4 for strip in found.strips)
    monkeypatch.setattr(pictures, "BUDGET", 2 * size)
    assert picture_sets(table, 4)[0].indices == (0, 3), "two prompts have room"
    monkeypatch.setattr(pictures, "SIDES", (16, 8))
    monkeypatch.setattr(pictures, "BUDGET", size - 1)
    (small,) = picture_sets(table, 4)
    assert small.side == 8 and small.size == (16, 16) and len(small.indices) >= 1


def test_links_are_relative_and_encoded(tmp_path: Path) -> None:
    folder = tmp_path / "a b#%25:c"
    (folder / ".hydra").mkdir(parents=True)
    record = folder / "results.json"
    assert folder_link(record, tmp_path) == "./a%20b%23%2525%3Ac/"
    assert config_link(record, tmp_path) == ""
    (folder / ".hydra" / "config.yaml").write_text("")
    assert config_link(record, folder / "report") == "./../.hydra/config.yaml"


def test_pictures_elsewhere_have_no_link(tmp_path: Path) -> None:
    (made, other) = _runs(tmp_path)
    moved = run(5, "gptq", path=made.path, artifacts={**made.artifacts, "images": "../1/images"}, prompts=made.prompts)
    (found,) = picture_sets(page_table([moved, other]), 1)
    assert sorted(strip.folder for strip in found.strips) == ["", "", "images"]
