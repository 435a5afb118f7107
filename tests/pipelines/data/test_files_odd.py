"""Odd and damaged files of one's own: scaled or read right, or named in one sentence with what to do."""

from __future__ import annotations

import json
import random
import struct
import warnings
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segquant_bench.pipelines.data.files import read_archive, read_prompts, read_table
from segquant_bench.pipelines.data.pictures import Picture, members, read_pictures, write_pictures
from segquant_bench.pipelines.errors import PipelineError
from tests.pipelines.layouts import jpeg, write_files

RAMP = np.linspace(0, 65535, 64 * 64).round().astype(np.uint16).reshape(64, 64)


def _read(path: Path, member: str | None = None, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    return np.asarray(read_pictures([Picture(path, member)], size, None)[0])


def _tiff(photometric: int, bits: int, kind: int, data: bytes) -> bytes:
    """A grey TIFF of 2×1 pixels; kind 1 is unsigned, 2 signed, 3 floating point; photometric 0 has white at 0."""
    tags = {256: 2, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 1, 279: len(data), 339: kind}
    data += bytes(len(data) % 2)
    head = b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags))
    return head + b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags.items()) + bytes(4)


@pytest.mark.parametrize("name", ["ramp.png", "ramp.tif", "ramp.pgm", "ramp.jp2"])
def test_grey_of_16_bits_is_scaled(tmp_path: Path, name: str) -> None:
    options = {"irreversible": False} if name == "ramp.jp2" else {}
    Image.fromarray(RAMP).save(tmp_path / name, **options)
    seen = _read(tmp_path / name)
    assert (seen == np.round(RAMP / 257)[..., None]).all() and abs(seen.mean() - 127.5) < 0.1
    write_pictures([Picture(tmp_path / name)], tmp_path / "out", (64, 64), None)
    assert (_read(tmp_path / "out" / "00000.png") == seen).all()


def test_grey_of_16_bits_turned_transparent_and_the_other_byte_order(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(RAMP).save(tmp_path / "a.png", exif=exif, transparency=int(RAMP[3, 5]))
    expected = np.round(RAMP / 257)
    expected[3, 5] = 255
    assert (_read(tmp_path / "a.png")[..., 1] == np.rot90(expected, -1)).all()
    big = Image.frombytes("I;16B", (64, 64), RAMP.astype(">u2").tobytes())
    big.save(tmp_path / "b.tif", exif=exif)
    assert (_read(tmp_path / "b.tif")[..., 1] == np.rot90(np.round(RAMP / 257), -1)).all()


@pytest.mark.parametrize(
    ("photometric", "bits", "kind", "data", "mode"),
    [
        (1, 32, 3, struct.pack("<2f", 0, 1), "F"),
        (1, 32, 1, struct.pack("<2I", 0, 2**31), "I"),
        (1, 16, 2, struct.pack("<2h", -5, 300), "I"),
        (1, 12, 1, b"\xff\xf0\x00", "I;16"),
        (0, 16, 1, struct.pack("<2H", 0, 65535), "I;16"),
    ],
)
def test_grey_of_an_unknown_range_is_refused(
    tmp_path: Path, photometric: int, bits: int, kind: int, data: bytes, mode: str
) -> None:
    (tmp_path / "deep.tif").write_bytes(_tiff(photometric, bits, kind, data))
    words = rf"deep\.tif has grey values of a range that is not known \(TIFF, Pillow's mode {mode}\); save it with 8"
    with pytest.raises(PipelineError, match=words):
        _read(tmp_path / "deep.tif", size=(2, 1))
    (tmp_path / "known.tif").write_bytes(_tiff(1, 16, 1, struct.pack("<2H", 257, 65535)))
    assert _read(tmp_path / "known.tif", size=(2, 1))[0, :, 0].tolist() == [1, 255]


def test_damaged_members_of_zips_are_named(tmp_path: Path) -> None:
    path = tmp_path / "all.zip"
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("x/a.jpg", jpeg(0))
        blob = bytearray(path.read_bytes())
        blob[60:64] = bytes(byte ^ 255 for byte in blob[60:64])
        path.write_bytes(blob)
        pictures, words = [Picture(path, "x/a.jpg")], r"the picture x/a\.jpg in .*all\.zip cannot be read \(.+\); get"
        with pytest.raises(PipelineError, match=words):
            read_pictures(pictures, (48, 40), None)
        with pytest.raises(PipelineError, match=words):
            write_pictures(pictures, tmp_path / str(method), (48, 40), None)
    with pytest.raises(PipelineError, match=r"b\.jpg in .*all\.zip cannot be read"):
        read_pictures([Picture(path, "b.jpg")], (48, 40), None)
    path.write_bytes(b"no zip")
    with pytest.raises(PipelineError, match=r"all\.zip cannot be read"):
        read_pictures([Picture(path, "x/a.jpg")], (48, 40), None)
    with pytest.raises(PipelineError, match=r"absent\.png cannot be read"):
        read_pictures([Picture(tmp_path / "absent.png")], (48, 40), None)


def test_huge_pictures_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    with pytest.raises(PipelineError, match=r"a\.jpg is too large to read \(.*1920 pixels.*\); make it smaller"):
        read_pictures([Picture(tmp_path / "a.jpg")], (48, 40), None)


def test_whatever_is_damaged_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random bytes of small pictures and of a zip are changed: read, or refused, never another exception."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8))
    blobs = []
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "PPM", "JPEG2000"):
        picture.save(buffer := BytesIO(), format=kind)
        blobs.append(buffer.getvalue())
    write_files(tmp_path, {"a.png": blobs[0], "captions.jsonl": b'{"file": "a.png"}', "\u00e9": b"x" * 99}, "whole.zip")
    blobs.append((tmp_path / "whole.zip").read_bytes())
    generator, refused, path = random.Random(0), 0, tmp_path / "odd"
    for number in range(320):
        blob = bytearray(blobs[number % len(blobs)])
        for _ in range(generator.randint(1, 4)):
            blob[generator.randrange(-min(len(blob), 240), min(len(blob), 120))] = generator.randrange(256)
        path.write_bytes(blob)
        zipped = number % len(blobs) == len(blobs) - 1
        try:
            with warnings.catch_warnings(action="ignore"):
                if zipped:
                    members(path)
                read_pictures([Picture(path, "a.png" if zipped else None)], (8, 8), "crop")
        except PipelineError as error:
            refused += 1
            assert "odd" in str(error) and "\n" not in str(error)
        if zipped:
            with pytest.raises(PipelineError, match="odd|a line of captions"):
                read_archive(path)
    assert refused > 60


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,prompt\n0.png,a dog\n1.png,a cat, sitting\n", r"^line 3 of table .*t\.csv has more cells than .* "
         r"\(file, prompt\); put quotes around"),
        ("prompt\na cat,\n", r"^line 2 of table .* has more cells"),
        (f'prompt\na dog\n"{"a" * 131073}"\n', r"t\.csv cannot be read from line 3 on \(field larger than .*shorten"),
        ('prompt\na dog\n"a cat\na bird\n', r"t\.csv cannot be read from line 3 on \(unexpected end of data\).*quotes"),
        ('prompt\n"a" cat\n', r"t\.csv cannot be read from line 2 on"),
        (f'"{"a" * 131073}"\n', r"t\.csv cannot be read from line 1 on"),
    ],
)  # fmt: skip
def test_rows_that_csv_would_read_wrongly(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    for read in (read_prompts, lambda path: read_table(path, None, pictures=False)):
        with pytest.raises(PipelineError, match=words):
            read(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": ["a", "b"]}, r"^line 2 of table .*t\.jsonl has a list as its prompt; write text or a number"),
        ({"caption": {"en": "a"}}, "has a dict as its caption"),
        ({"prompt": True}, "has a bool as its prompt"),
        ({"prompt": "a", "file": ["a.png"]}, "has a list as its file"),
    ],
)
def test_values_that_are_no_text(tmp_path: Path, row: object, words: str) -> None:
    (tmp_path / "t.jsonl").write_text(f'{{"prompt": 0.5}}\n{json.dumps(row)}\n')
    with pytest.raises(PipelineError, match=words):
        read_prompts(tmp_path / "t.jsonl")


@pytest.mark.parametrize("row", [{"caption": ["a"]}, {"file": ["a.png"]}, {"split": {}}])
def test_values_of_archives_that_are_no_text(tmp_path: Path, row: dict[str, object]) -> None:
    whole = {"file": "a.png", "caption": " a", "split": "evaluation"}
    write_files(tmp_path, {"a.png": b"", "captions.jsonl": b"\xef\xbb\xbf" + json.dumps(whole).encode()}, "whole.zip")
    assert [entry.prompt for entry in read_archive(tmp_path / "whole.zip").evaluation] == [" a"]
    write_files(tmp_path, {"a.png": b"", "captions.jsonl": json.dumps(whole | row).encode()}, "odd.zip")
    with pytest.raises(PipelineError, match=r"captions\.jsonl in .*odd\.zip has a value that is no text"):
        read_archive(tmp_path / "odd.zip")


def test_a_line_ends_at_line_ends_only(tmp_path: Path) -> None:
    """Separators of Unicode, form feeds and the like are inside a prompt, in whichever file it is."""
    prompts = [f"a cat{separator}on a mat" for separator in "\u2028\u2029\x85\x0c\x0b\x1c\x1e"]
    for end in ("\n", "\r\n"):
        (tmp_path / "t.txt").write_bytes(end.join([" ", *prompts, "", "\t"]).encode())
        (tmp_path / "t.csv").write_bytes(end.join(["prompt", *prompts]).encode())
        rows = [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in prompts]
        (tmp_path / "t.jsonl").write_bytes(end.join(rows).encode())
        for name in ("t.txt", "t.csv", "t.jsonl"):
            assert [entry.prompt for entry in read_prompts(tmp_path / name)] == prompts


def test_line_breaks_in_cells_are_kept(tmp_path: Path) -> None:
    prompts = ["a\r\nb", "a\nb", "a\r\r\n\n b", 'a "b"\n', "a\x00b"]
    for end in ("\n", "\r\n"):
        quoted = ['"' + prompt.replace('"', '""') + '"' for prompt in prompts]
        (tmp_path / "t.csv").write_bytes(end.join(["prompt", *quoted, ""]).encode())
        (tmp_path / "t.jsonl").write_bytes("".join(json.dumps({"prompt": each}) + end for each in prompts).encode())
        for name in ("t.csv", "t.jsonl"):
            assert [entry.prompt for entry in read_prompts(tmp_path / name)] == [each.strip() for each in prompts]


def test_halves_of_characters_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"prompt": "a \\ud83d\\ude00"}\n{"prompt": "b \\ud83d"}\n')
    with pytest.raises(PipelineError, match=r"^the prompt of line 2 has half of a character \(U\+D83D\)"):
        read_prompts(tmp_path / "t.jsonl")
    row = {"file": "a.png", "caption": "\udc00", "split": "evaluation"}
    write_files(tmp_path, {"a.png": b"", "captions.jsonl": json.dumps(row).encode()}, "half.zip")
    with pytest.raises(PipelineError, match=r"^the prompt of a\.png has half of a character"):
        read_archive(tmp_path / "half.zip")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.csv", 'prompt\na\n" \t"\n', "line 3 of table .* has no prompt"),
        ("t.jsonl", '{"prompt": " \\u2028 "}\n', "line 1 of table .* has no prompt"),
        ("t.yaml", "a: x\nb: '  '\n", "b in prompt file .* has no text; write some, or take b out"),
    ],
)
def test_prompts_that_are_empty_when_stripped(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(PipelineError, match=words):
        read_prompts(tmp_path / name)


def test_the_first_column_that_says_something(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("prompt,caption,file,image\n,a cat,,1.png\na dog,no,2.png,no.png\n ,0,3.png,\n")
    entries = read_table(tmp_path / "t.csv", None, pictures=True).evaluation
    assert [(entry.prompt, entry.key) for entry in entries] == [("a cat", "1.png"), ("a dog", "2.png"), ("0", "3.png")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.txt", "red cat\n"),
        ("t.TXT", "red cat\n"),
        ("t.CSV", "prompt\nred cat\n"),
        ("t.JSONL", '{"prompt": "red cat"}\n'),
        ("t.YAML", "a: red cat\n"),
    ],
)
def test_capitals_and_byte_order_marks(tmp_path: Path, name: str, text: str) -> None:
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / name).write_text(text, encoding=encoding)
        assert [entry.prompt for entry in read_prompts(tmp_path / name)] == ["red cat"]
        if name in ("t.CSV", "t.JSONL"):
            assert read_table(tmp_path / name, None, pictures=False).evaluation[0].prompt == "red cat"
