"""Blocks without a language that hold Python: they need a pipeline or a compiler, which pages do not make."""

from __future__ import annotations

import re
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import segquant
from segquant.deploy.run import load_exported
from tests.docs.pages import PAGES, blocks, read
from tests.segquant.sd3 import random_sd3, sd3_batches

_PYTHON = re.compile(r"^(import |from \w+ import |.*\bsegquant\.\w+\(|.*\btorch\._)", re.MULTILINE)
RUN = {"docs/engines.md": 2, "docs/deploy.md": 2}
"""Blocks of a page that the tests below run; a new one wants a test, or the language python."""


def _texts(page: str) -> list[str]:
    return [block.text for block in blocks(read(page)) if block.language == "text" and _PYTHON.search(block.text)]


def test_every_block_is_run_somewhere() -> None:
    found = {page: len(_texts(page)) for page in PAGES if page.startswith(("README", "docs/"))}
    assert {page: count for page, count in found.items() if count} == RUN


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the pages speak of: a pipeline whose denoiser is quantized, and an example of its arguments."""
    monkeypatch.chdir(tmp_path)
    model = random_sd3(1, heads=2)
    batch = {key: value for key, value in sd3_batches(model, 1, seed=0)[0].items() if key != "return_dict"}
    segquant.quantize_(model, segquant.presets.rtn("w8a8_dynamic"), [batch])
    return {"pipe": types.SimpleNamespace(transformer=model), "model": model, "call": batch, "batch": batch}


def _agrees(output: torch.Tensor, names: dict[str, Any]) -> bool:
    wanted = names["model"](**names["batch"], return_dict=False)[0]
    return bool((output - wanted).norm() < 0.01 * wanted.norm())


def test_a_denoiser_in_an_engine(names: dict[str, Any]) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("openvino")
    whole, coded = _texts("docs/engines.md")
    exec(compile(whole, "docs/engines.md", "exec"), names)
    assert names["pipe"].transformer is not names["model"]
    assert _agrees(names["pipe"].transformer(**names["call"], return_dict=False)[0], names)
    given = {"segquant": segquant, "pipe": types.SimpleNamespace(transformer=names["model"]), "call": names["call"]}
    exec(compile(coded, "docs/engines.md", "exec"), {**given, "calls": [names["call"]]})
    found = load_exported("exported", "openvino")(**names["call"], return_dict=False)[0]
    wanted = names["model"](**names["batch"], return_dict=False)[0]
    assert 0 < (found - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.slow
def test_a_package(names: dict[str, Any]) -> None:
    write, read_again = _texts("docs/deploy.md")
    exec(compile(write, "docs/deploy.md", "exec"), {"segquant": segquant, **names})
    there: dict[str, Any] = {"torch": torch, "batch": names["batch"]}
    exec(compile(read_again, "docs/deploy.md", "exec"), there)
    assert _agrees(there["output"], names)
