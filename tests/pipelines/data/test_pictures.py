"""Real pictures: read from files and zips, brought to a size, hashed, written as PNGs that eval takes."""

from __future__ import annotations

import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segquant_bench.eval.metrics.images import list_numbered
from segquant_bench.pipelines.data.pictures import (
    Picture,
    fit_picture,
    missing,
    pictures_digest,
    read_pictures,
    write_pictures,
)
from segquant_bench.pipelines.errors import PipelineError
from tests.pipelines.layouts import write_files


def _stripes() -> Image.Image:
    """Red, green and blue thirds side by side, 90×30."""
    picture = Image.new("RGB", (90, 30), (0, 255, 0))
    picture.paste((255, 0, 0), (0, 0, 30, 30))
    picture.paste((0, 0, 255), (60, 0, 90, 30))
    return picture


def _bytes(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def _load(path: Path) -> Image.Image:
    """A picture in its own mode, its file closed."""
    with Image.open(path) as picture:
        return picture.copy()


def test_crop_keeps_the_middle_and_stretch_keeps_everything() -> None:
    cropped = np.asarray(fit_picture(_stripes(), (30, 30), "crop"))
    assert cropped.shape == (30, 30, 3) and (cropped == [0, 255, 0]).all()
    wide = np.asarray(fit_picture(_stripes(), (120, 60), "crop"))
    assert wide.shape == (60, 120, 3)
    assert (wide[:, :25] == [255, 0, 0]).all() and (wide[:, -25:] == [0, 0, 255]).all()
    stretched = np.asarray(fit_picture(_stripes(), (30, 30), "stretch"))
    assert (stretched[:, 2] == [255, 0, 0]).all() and (stretched[:, 15] == [0, 255, 0]).all()
    assert (stretched[:, -3] == [0, 0, 255]).all()


def test_shrinking_averages() -> None:
    """A chequerboard of single pixels has no detail left at a quarter of its size: antialiasing makes it grey."""
    board = np.indices((64, 64)).sum(0) % 2 * 255
    picture = Image.fromarray(board.astype(np.uint8)).convert("RGB")
    small = np.asarray(fit_picture(picture, (16, 16), "crop"))[2:-2, 2:-2].astype(int)
    assert abs(small - 127.5).max() < 8


def test_fitting_to_its_own_size_changes_nothing() -> None:
    assert fit_picture(_stripes(), (90, 30), "crop").tobytes() == _stripes().tobytes()


def test_pngs_that_eval_takes_from_every_mode(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (8, 6), (255, 0, 0, 0))
    palette = _stripes().quantize(4)
    turned = Image.new("RGB", (8, 6), (9, 90, 200))
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    files = {
        "a.png": _bytes(_stripes()),
        "b.png": _bytes(clear),
        "c.png": _bytes(palette, transparency=0),
        "d.png": _bytes(Image.new("L", (8, 6), 77)),
        "e.jpg": _bytes(turned, "JPEG", exif=exif, quality=95),
        "f.jpg": _bytes(Image.new("CMYK", (8, 6), (0, 0, 0, 0)), "JPEG"),
    }
    write_files(tmp_path, files)
    write_pictures([Picture(tmp_path / name) for name in files], tmp_path / "out", (8, 6), None)
    written = list_numbered(tmp_path / "out", len(files), "real")
    assert written[0].read_bytes() == files["a.png"]
    pictures = [_load(path) for path in written]
    assert {picture.mode for picture in pictures} == {"RGB"}
    assert pictures[1].getpixel((3, 3)) == (255, 255, 255)
    assert pictures[3].getpixel((3, 3)) == (77, 77, 77)
    assert pictures[4].size == (6, 8)
    assert min(pictures[5].getpixel((3, 3))) > 250


def test_fitted_pictures_have_the_size_asked_for(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.png": _bytes(_stripes()), "b.jpg": _bytes(_stripes(), "JPEG")})
    pictures = [Picture(tmp_path / "a.png"), Picture(tmp_path / "b.jpg")]
    write_pictures(pictures, tmp_path / "out", (20, 10), "crop")
    assert {_load(path).size for path in (tmp_path / "out").iterdir()} == {(20, 10)}
    assert [image.size for image in read_pictures(pictures, (20, 10), "stretch")] == [(20, 10)] * 2
    with pytest.raises(PipelineError, match=r"a\.png is 90×30, 20×10 is wanted; set dataset\.fit=crop"):
        read_pictures(pictures, (20, 10), None)


def test_zip_and_folder_hold_the_same_pictures(tmp_path: Path) -> None:
    files = {f"x/{index}.png": _bytes(Image.new("RGB", (4, 4), (index, 0, 0))) for index in range(3)}
    write_files(tmp_path, files)
    write_files(tmp_path, files, "all.zip")
    loose = [Picture(tmp_path / name) for name in files]
    packed = [Picture(tmp_path / "all.zip", name) for name in files]
    for first, second in zip(read_pictures(loose, (4, 4), None), read_pictures(packed, (4, 4), None), strict=True):
        assert first.tobytes() == second.tobytes()
    absent = [Picture(tmp_path / "x/9.png"), Picture(tmp_path / "all.zip", "x/9.png")]
    assert missing([*loose, *packed, *absent]) == absent


def test_digest_is_of_contents_in_order(tmp_path: Path) -> None:
    blobs = [_bytes(Image.new("RGB", (4, 4), (index, 0, 0))) for index in range(3)]
    for name, method in (("a.zip", zipfile.ZIP_STORED), ("b.zip", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(tmp_path / name, "w", method) as archive:
            for index in (0, 1):
                archive.writestr(f"{name}{index}", blobs[index])
    first, second = ([Picture(tmp_path / name, f"{name}{index}") for index in (0, 1)] for name in ("a.zip", "b.zip"))
    assert pictures_digest(first) == pictures_digest(second) != pictures_digest(first[::-1])
    write_files(tmp_path, {"0.png": blobs[0], "1.png": blobs[1], "copy.png": blobs[0]})
    files = [Picture(tmp_path / name) for name in ("0.png", "1.png", "copy.png")]
    before = pictures_digest(files)
    assert before == pictures_digest([files[2], files[1], files[0]])
    (tmp_path / "1.png").write_bytes(blobs[2])
    assert pictures_digest(files) != before


def test_damaged_pictures_and_zips_are_named(tmp_path: Path) -> None:
    write_files(tmp_path, {"half.png": _bytes(_stripes())[:60], "no.zip": b"no zip"})
    with pytest.raises(PipelineError, match=r"half\.png cannot be read"):
        write_pictures([Picture(tmp_path / "half.png")], tmp_path / "out", (8, 8), "crop")
    with pytest.raises(PipelineError, match=r"no\.zip cannot be read .*; get it again"):
        missing([Picture(tmp_path / "no.zip", "a.png")])
