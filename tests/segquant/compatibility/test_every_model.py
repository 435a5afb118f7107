"""Every denoiser class runs quantized as it does in float, and comes out of a file in a new process bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.segquant.compatibility.every_model import NAMES, PAGE, Case, cases, check, table

# Classes that ask a layer for its first parameter, take weights to functions, read `weight.dtype`, have convolutions.
FEW = [
    Case("HunyuanDiT2DModel", "rtn", "w8a8_dynamic", "bfloat16"),
    Case("PixArtTransformer2DModel", "segquant_g", "w4a8", "bfloat16"),
    Case("WanAnimateTransformer3DModel", "rtn", "w8a8_tensor", "bfloat16"),
    Case("WanTransformer3DModel", "segquant_g", "w8a8_tensor", "float32"),
]


def test_a_few_classes(tmp_path: Path) -> None:
    assert check(FEW, tmp_path, new_process=False) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_class(name: str, tmp_path: Path) -> None:
    refused = check(cases([name]), tmp_path)
    page = PAGE.read_text(encoding="utf-8")
    assert f"| {name} |" in page and all(why in page for why in refused.values())


def test_the_page_has_every_class_and_few_refusals() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| class")]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == NAMES
    assert sum("[" in row for row in rows) <= 5 and page.startswith(table({}).partition("| class")[0])
