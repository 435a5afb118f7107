"""Fonts for characters that matplotlib's own font lacks: those of the machine, where it has any."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.ft2font import FT2Font

OWN = "DejaVu Sans"
PREFERRED = (
    "Noto Sans CJK", "Noto Sans", "Source Han Sans", "WenQuanYi", "Droid Sans Fallback", "PingFang", "Hiragino Sans",
    "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Arial Unicode MS", "Noto Emoji", "Symbola",
)  # fmt: skip
UNFIT = ("Last Resort", "cm", "STIXSize", "STIXNonUnicode")
"""Fonts of boxes, and of other characters than their codes say."""
MOST = 300
"""Fonts that are looked through for a character."""
COLOUR = 1 << 14
"""FreeType's flag of fonts whose glyphs are pictures, which are not drawn here."""
SHOWN = 8
"""Characters that a sentence names."""


@dataclass(frozen=True)
class Font:
    name: str
    path: str


_FOUND: dict[str, Font | None] = {}
"""By character that the own font lacks."""


def own_path(*, bold: bool = False) -> str:
    import matplotlib  # a second, which reports without pictures do not need

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name)


@lru_cache(maxsize=1)
def candidates() -> tuple[Font, ...]:
    """Upright fonts of the machine, preferred and regular ones first."""
    from matplotlib import font_manager

    known = [each for each in font_manager.fontManager.ttflist if each.style == "normal" and each.name != OWN]
    fit = [each for each in known if not each.name.startswith(UNFIT)]
    fit.sort(key=lambda each: (_rank(each.name), each.weight != 400, each.name, each.fname))
    return tuple(Font(each.name, str(each.fname)) for each in fit[:MOST])


def _rank(name: str) -> int:
    return next((rank for rank, prefix in enumerate(PREFERRED) if name.startswith(prefix)), len(PREFERRED))


@lru_cache(maxsize=4)
def _codes(path: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(path).get_charmap())


def _open(font: Font) -> FT2Font | None:
    from matplotlib.ft2font import FT2Font

    try:
        opened = FT2Font(font.path)
    except (OSError, RuntimeError):  # uninstalled since matplotlib listed it, or broken: as if it were not there
        return None
    flags: Any = opened.face_flags  # a number before matplotlib 3.10
    return None if getattr(flags, "value", flags) & COLOUR else opened


def _is_unseen(character: str) -> bool:
    """Whether no glyph is expected: spaces, joiners, selectors of variants."""
    code = ord(character)
    selects = 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF
    return selects or unicodedata.category(character) in ("Cf", "Cc", "Zs")


def fallbacks(text: str, own: str | None = None) -> dict[str, Font | None]:
    """By character that the own font (file `own`) lacks: the font that has it, None if none does."""
    codes = _codes(own or own_path())
    if codes.issuperset(map(ord, text)):
        return {}
    lacking = [each for each in dict.fromkeys(text) if ord(each) not in codes and not _is_unseen(each)]
    sought = {each for each in lacking if each not in _FOUND}
    for font in candidates() if sought else ():
        opened = _open(font)
        has = {each for each in sought if opened is not None and opened.get_char_index(ord(each))}
        _FOUND.update(dict.fromkeys(has, font))
        sought -= has
        if not sought:
            break
    _FOUND.update(dict.fromkeys(sought))
    return {each: _FOUND[each] for each in lacking}


def pieces(text: str, own: str) -> Iterator[tuple[str, str]]:
    """Text in pieces of one font each, with the font's file; marks stay with what they are on."""
    found, piece, last = fallbacks(text, own), "", own
    for character in text:
        font = found.get(character)
        path = own if font is None else font.path
        attached = _is_unseen(character) or (font is None and unicodedata.category(character).startswith("M"))
        if piece and path != last and not attached:
            yield piece, last
            piece = ""
        last = last if piece and attached else path
        piece += character
    if piece:
        yield piece, last


def boxes_note(texts: Iterable[str]) -> str:
    """A sentence on characters that pictures show as boxes; empty if there are none."""
    lacking = [each for each, font in fallbacks("".join(dict.fromkeys("".join(texts)))).items() if font is None]
    if not lacking:
        return ""
    told = ", ".join(f"{each} (U+{ord(each):04X})" for each in lacking[:SHOWN])
    more = f" and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
    return (
        f"No font of this machine has {told}{more}: pictures show boxes in their place. Install one that has them, "
        "such as Noto Sans CJK, and make the report again."
    )
