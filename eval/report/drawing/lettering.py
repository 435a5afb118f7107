"""Text in pictures that Pillow draws: in several fonts where one lacks characters, and wrapped."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from PIL import ImageDraw, ImageFont

from segquant_bench.eval.report.drawing.fonts import own_path, pieces
from segquant_bench.texts import plain

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Face:
    """matplotlib's own font at a size in pixels, and others for what it lacks."""

    size: int
    bold: bool = False

    def getlength(self, text: str) -> float:
        """Pixels."""
        return sum(font.getlength(piece) for piece, font in self._parts(text))

    def draw(self, draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, colour: Colour, anchor: str) -> None:
        """`anchor`: "ma" (`at` is the middle of the top) or "ra" (its right end)."""
        own, parts = _load(own_path(bold=self.bold), self.size), self._parts(text)
        if [font for _, font in parts] == [own]:
            draw.text(at, text, font=own, fill=colour, anchor=anchor)
            return
        x = at[0] - self.getlength(text) * {"m": 0.5, "r": 1.0}[anchor[0]]
        baseline = at[1] + own.getmetrics()[0]
        for piece, font in parts:
            draw.text((x, baseline), piece, font=font, fill=colour, anchor="ls")
            x += font.getlength(piece)

    def _parts(self, text: str) -> list[tuple[str, ImageFont.FreeTypeFont]]:
        return [(piece, _load(path, self.size)) for piece, path in pieces(text, own_path(bold=self.bold))]


@lru_cache(maxsize=32)
def _load(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


def wrap(text: str, font: Face, width: int, most: int | None = None) -> list[str]:
    """Lines of at most `width` pixels; of more than `most`, the first ones and "…"."""
    lines = _lines(plain(text), font, width, most)
    if most is None or len(lines) <= most:
        return lines
    last = lines[most - 1].rstrip(" ,.")
    while len(last) > 1 and font.getlength(f"{last}…") > width:
        last = last[:-1]
    return [*lines[: most - 1], f"{last}…"]


def _lines(text: str, font: Face, width: int, most: int | None) -> list[str]:
    lines: list[str] = []
    current = ""
    for piece in _pieces(text):
        if most is not None and len(lines) > most:
            return lines  # a text of thousands of characters is not measured to its end
        if font.getlength((current + piece).rstrip()) <= width:
            current += piece
            continue
        if current:
            lines.append(current.rstrip())
        while font.getlength(piece.rstrip()) > width and len(piece) > 1:
            cut = _fitting(piece, font, width)
            lines.append(piece[:cut])
            piece = piece[cut:]
        current = piece
    return [*lines, current.rstrip()] if current.strip() else lines


def _fitting(piece: str, font: Face, width: int) -> int:
    """How many first characters fit: at least one, never all."""
    low, high = 1, len(piece) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(piece[:middle]) <= width:
            low = middle
        else:
            high = middle - 1
    return low


def _pieces(text: str) -> list[str]:
    found = [""]
    for character in text:
        found[-1] += character
        if character in " _-/,":
            found.append("")
    return [piece for piece in found if piece]
