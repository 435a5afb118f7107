"""Characters that matplotlib's own font lacks: drawn with another font where there is one, else told once."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image, ImageDraw

from segquant_bench.eval.render import write_report
from segquant_bench.eval.report.drawing import fonts
from segquant_bench.eval.report.drawing.canvas import new_figure, rendered
from segquant_bench.eval.report.drawing.fonts import Font, boxes_note, fallbacks, own_path, pieces
from segquant_bench.eval.report.drawing.lettering import Face, wrap
from tests.eval.support import smooth_pictures, write_pictures
from tests.eval.sweep import run_record

CAT, MAT = "猫", "垫"
MACHINE = fonts.candidates


@pytest.fixture
def square(tmp_path: Path) -> Path:
    """A font whose only glyph is a full square for CAT."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 1000), (1000, 1000), (1000, 0)):
        pen.lineTo(corner)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "cat"])
    builder.setupCharacterMap({ord(CAT): "cat"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "cat": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "cat": (1000, 0)})
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "squares.ttf")
    return tmp_path / "squares.ttf"


@pytest.fixture(autouse=True)
def none_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without other fonts."""
    _offer(monkeypatch)


def _offer(monkeypatch: pytest.MonkeyPatch, *paths: Path) -> None:
    monkeypatch.setattr(fonts, "_FOUND", {})
    monkeypatch.setattr(fonts, "candidates", lambda: tuple(Font("Squares", str(path)) for path in paths))


def test_text_is_cut_where_its_font_changes(monkeypatch: pytest.MonkeyPatch, square: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"no font")
    _offer(monkeypatch, tmp_path / "uninstalled.ttf", broken, square)
    own, other = own_path(), str(square)
    assert list(pieces("a red cat", own)) == [("a red cat", own)] and list(pieces("", own)) == []
    assert list(pieces(f"a {CAT}{CAT}\u200d!", own)) == [("a ", own), (f"{CAT}{CAT}\u200d", other), ("!", own)]
    assert list(pieces(f"{CAT}{MAT}e\u0301", own)) == [(CAT, other), (f"{MAT}e\u0301", own)]
    assert fallbacks(f"x{CAT}{MAT}\ufe0f \u200b") == {CAT: Font("Squares", other), MAT: None}
    assert boxes_note(["a red cat", "שלום", "\u200b\ufe0f"]) == ""
    assert boxes_note([CAT, f"{MAT}{MAT}"]).startswith(
        f"No font of this machine has {MAT} (U+57AB): pictures show boxes"
    )
    many = "".join(map(chr, range(0x4E00, 0x4E0A)))
    assert " (U+4E07) and 2 more: pictures" in boxes_note([many, many])


def test_pillow_draws_the_other_fonts_glyphs(monkeypatch: pytest.MonkeyPatch, square: Path) -> None:
    def drawn(text: str, anchor: str, left: float) -> np.ndarray:
        canvas = Image.new("RGB", (100, 40), "white")
        Face(20).draw(ImageDraw.Draw(canvas), (left, 5), text, (0, 0, 0), anchor)
        return np.asarray(canvas.convert("L")) < 128

    _offer(monkeypatch, square)
    face = Face(20)
    assert face.getlength(CAT) == 20 and face.getlength(f"ab{CAT}") == face.getlength("ab") + 20
    for text, anchor, at, left in ((CAT, "ma", 50, 40), (CAT, "ra", 90, 70), (f"{CAT}{CAT}", "ra", 90, 50)):
        ink = np.argwhere(drawn(text, anchor, at))
        assert ink[:, 1].min() == left and ink[:, 1].max() == left + face.getlength(text) - 1
        assert np.ptp(ink[:, 0]) == 19, "a full square, on the line of the own font"
    plain, mixed = drawn("ab", "ra", 60), drawn(f"ab{CAT}", "ra", 80)
    assert np.array_equal(plain[:, :59], mixed[:, :59]) and mixed[:, 60:80].sum() >= 400
    assert wrap(f"{CAT * 7} b", face, 60) == [CAT * 3, CAT * 3, f"{CAT} b"]


def test_figures_name_the_other_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """DejaVu Sans has no arc (U+2312); STIX, which matplotlib brings, has one."""
    monkeypatch.setattr(fonts, "candidates", MACHINE)
    found = fallbacks("\u2312 x")["\u2312"]
    assert found is not None and not any(font.name.startswith(("Last Resort", "cm")) for font in MACHINE())
    figure = new_figure(2, 1)
    panel = figure.subplots()
    panel.set_title("an arc: \u2312")
    panel.set_yticks([0], ["plain"])
    before = panel.get_yticklabels()[0].get_fontfamily()
    assert rendered(figure)[1:4] == b"PNG"
    assert panel.title.get_fontfamily() == ["DejaVu Sans", found.name]
    assert panel.get_yticklabels()[0].get_fontfamily() == before
    figure.savefig(io.BytesIO(), format="png")  # warnings are errors here: also one about a missing glyph


def test_a_report_says_once_what_it_cannot_draw(monkeypatch: pytest.MonkeyPatch, square: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", smooth_pictures(2, 8, seed=0))
    raw = run_record("none", "w8a8", 0.0, [f"a {CAT}", f"a {MAT} & more"], [])
    (tmp_path / "results.json").write_text(json.dumps(raw | {"artifacts": {"images": "images"}}))
    written = write_report([tmp_path])
    for name in ("table.md", "report.html"):
        assert written[name].read_text().count(f"No font of this machine has {CAT} (U+732B), {MAT} (U+57AB)") == 1
    boxed = written["grid.png"].read_bytes()
    _offer(monkeypatch, square)
    assert write_report([tmp_path])["table.md"].read_text().count(f"has {MAT} (U+57AB)") == 1
    assert written["grid.png"].read_bytes() != boxed
    for only in ({"grid": False}, {"rows": 1}):
        text = write_report([tmp_path], **only)["table.md"].read_text()
        assert "No font" not in text
