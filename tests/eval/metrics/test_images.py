from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.metrics.images import check_sizes, content_hash, list_numbered, list_pictures, read_rgb
from tests.eval.support import smooth_pictures, write_pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "pictures", smooth_pictures(3, 16, seed=0))


def test_lists_in_order_and_ignores_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")
    assert [p.name for p in list_numbered(folder, 3, "generated")] == ["00000.png", "00001.png", "00002.png"]


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="generated pictures, .*nowhere, does not exist"):
        list_pictures(tmp_path / "nowhere", "generated")


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="holds no PNG"):
        list_pictures(tmp_path, "real")


@pytest.mark.parametrize("n", [2, 4])
def test_count_differs_from_prompts(folder: Path, n: int) -> None:
    with pytest.raises(EvalError, match=f"holds 3 PNGs for {n} prompts"):
        list_numbered(folder, n, "generated")


def test_wrong_names(folder: Path) -> None:
    (folder / "00001.png").rename(folder / "00007.png")
    with pytest.raises(EvalError, match=r"lacks 00001\.png"):
        list_numbered(folder, 3, "generated")


def test_jpeg_is_refused(folder: Path) -> None:
    Image.new("RGB", (8, 8)).save(folder / "00003.jpg")
    with pytest.raises(EvalError, match="not PNG"):
        list_pictures(folder, "generated")


def test_jpeg_named_png_is_refused(folder: Path) -> None:
    Image.new("RGB", (8, 8)).save(folder / "00001.png", format="JPEG")
    with pytest.raises(EvalError, match="JPEG file named .png"):
        list_pictures(folder, "generated")


def test_text_named_png_is_refused(folder: Path) -> None:
    (folder / "00001.png").write_text("no picture")
    with pytest.raises(EvalError, match="not a readable picture"):
        list_pictures(folder, "generated")


def test_truncated_png_is_refused(folder: Path) -> None:
    path = folder / "00001.png"
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(EvalError, match="truncated or damaged"):
        read_rgb(path)


def test_transparency_is_refused(folder: Path) -> None:
    Image.new("RGBA", (8, 8)).save(folder / "00001.png")
    with pytest.raises(EvalError, match="alpha channel"):
        list_pictures(folder, "real")


def test_sizes_must_agree(folder: Path, tmp_path: Path) -> None:
    other = write_pictures(tmp_path / "other", smooth_pictures(3, 24, seed=0))
    with pytest.raises(EvalError, match="16×16 but .* 24×24"):
        check_sizes(list_pictures(folder, "a"), list_pictures(other, "b"))


def test_hash_is_of_contents_in_order(folder: Path, tmp_path: Path) -> None:
    paths = list_pictures(folder, "a")
    copy = write_pictures(tmp_path / "copy", np.stack([read_rgb(p) for p in paths]))
    assert content_hash(paths) == content_hash(list_pictures(copy, "b"))
    assert content_hash(paths) != content_hash(paths[::-1])
