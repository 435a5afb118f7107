"""Figures without a display and without global state."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from segquant_bench.eval.report.drawing.fonts import OWN, fallbacks
from segquant_bench.texts import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

FORMATS = ("png", "svg", "pdf")
NO_DATES: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
LONGEST = 160
"""Characters of a label in a figure."""
TALLEST = 500.0
"""Inches of a figure; Agg, which draws it, takes 65,535 pixels."""
COMMON = 40
"""Characters of a label for which figures have room."""
INCHES = 0.08
"""What a further character of a label is wide, at most."""


def new_figure(width: float, height: float, wspace: float | None = None) -> Figure:
    """Sizes in inches; `wspace` as a share of the panels' width."""
    # matplotlib takes a second to import, which reports without figures do not need to wait for
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), dpi=120, layout=ConstrainedLayoutEngine(wspace=wspace))
    FigureCanvasAgg(figure)
    return figure


def is_too_tall(name: str, height: float) -> bool:
    """Whether a figure cannot be drawn, which the log then says."""
    if height > TALLEST:
        log.warning("%s is not drawn, because it would be %.0f inches tall; report a part of the runs", name, height)
    return height > TALLEST


def more_width(labels: Iterable[str]) -> float:
    """Inches that the longest label needs beyond the default."""
    return INCHES * max(min(max(map(len, labels), default=0), LONGEST) - COMMON, 0)


def figure_text(text: str, longest: int = LONGEST) -> str:
    """Text on one line that matplotlib does not read as mathematics."""
    line = plain(text)
    line = line if len(line) <= longest else f"{line[: longest - 1]}…"
    line = line.replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line  # legends leave labels out that start with it


def plain_log_ticks(panel: Axes) -> None:
    """0.02, 0.03, 0.05 … instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panel.yaxis.set_major_locator(LogLocator(10, subs=(1, 1.5, 2, 3, 5, 7)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def to_files(name: str, figure: Figure | None, formats: Sequence[str]) -> dict[str, bytes]:
    """``metrics.png``, ``metrics.pdf`` …; nothing of no figure."""
    return {} if figure is None else {f"{name}.{form}": rendered(figure, form) for form in formats}


def rendered(figure: Figure, form: str = "png") -> bytes:
    """The figure's file in one of `FORMATS`: the same bytes each time, fonts as TrueType, which journals ask for."""
    import matplotlib
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        others = [font.name for font in fallbacks(text.get_text()).values() if font is not None]
        if others:
            text.set_fontfamily([OWN, *dict.fromkeys(others)])
    buffer = io.BytesIO()
    settings: Any = {"svg.hashsalt": "segquant", "svg.fonttype": "path", "pdf.fonttype": 42}
    with warnings.catch_warnings(), matplotlib.rc_context(settings):
        # of characters that no font has: boxes, of which the report tells once
        warnings.filterwarnings("ignore", r"(?s)Glyph .* missing from", UserWarning)
        figure.savefig(buffer, format=form, metadata=NO_DATES[form])
    return buffer.getvalue()
