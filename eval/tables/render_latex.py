from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.tables.numbers import format_interval, format_spread
from segquant_bench.eval.tables.table import DASH, Cell, Column, Row, Table
from segquant_bench.texts import plain

INTERVALS = "intervals are 95 % intervals"
PACKAGES = r"% needs \usepackage{booktabs}"
ENGINE = "% has characters that need LuaLaTeX or XeLaTeX, and a font that has them"
_ARROWS = {"higher": r" $\uparrow$", "lower": r" $\downarrow$", None: ""}
_CHARACTERS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "×": r"$\times$", "<": r"\textless{}",
    ">": r"\textgreater{}", "∞": r"$\infty$", "−": "$-$", "±": r"$\pm$",
}  # fmt: skip


def to_latex(table: Table) -> str:
    """A booktabs tabular, its title a comment, a rule between groups."""
    comment = f"% {plain(table.title)}" if table.title else f"{PACKAGES}; {INTERVALS}"
    lines = [comment, rf"\begin{{tabular}}{{{_spec(table)}}}", r"\toprule", _heads(table)]
    return _finished([*lines, *_body(table, _cell), r"\bottomrule", r"\end{tabular}"])


def to_latex_float(table: Table, caption: str = "", label: str = "", *, longtable: bool = False) -> str:
    """A table with caption and label, intervals below values, no wider than the column that it stands in.

    `longtable`: over as many pages as it needs (in documents of one column), with its heads on each.

    Raises:
        EvalError: a label that LaTeX does not take.
    """
    if label and not re.fullmatch(r"[A-Za-z0-9:._/+-]+", label):
        raise EvalError(f"a label is letters, digits and :._/+-, {label!r} is not")
    named = (rf"\caption{{{escape(caption)}}}" if caption else "") + (rf"\label{{{label}}}" if label else "")
    return _finished(_long(table, named) if longtable else _float(table, named))


def _float(table: Table, named: str) -> list[str]:
    return [
        f"{PACKAGES} and \\usepackage{{graphicx}}; {INTERVALS}", r"\begin{table}", r"\centering\small", named,
        # as it is where it fits, else as wide as the column
        r"\resizebox{\ifdim\width>\columnwidth\columnwidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{_spec(table)}}}", r"\toprule", _heads(table), *_body(table, _stacked), r"\bottomrule",
        r"\end{tabular}}", r"\end{table}",
    ]  # fmt: skip


def _long(table: Table, named: str) -> list[str]:
    heads = [r"\toprule", _heads(table), r"\midrule"]
    return [
        f"{PACKAGES} and \\usepackage{{longtable}}; {INTERVALS}", r"{\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\begin{{longtable}}{{{_spec(table)}}}", *([rf"{named}\\"] if named else []), *heads, r"\endfirsthead",
        *heads, r"\endhead", r"\bottomrule", r"\endlastfoot", *_body(table, _stacked)[1:], r"\end{longtable}}",
    ]  # fmt: skip


def _spec(table: Table) -> str:
    return "".join("l" if column.kind == "key" else "r" for column in table.columns)


def _heads(table: Table) -> str:
    return " & ".join(map(_head, table.columns)) + r" \\"


def _body(table: Table, cell: Callable[[Cell], str]) -> list[str]:
    return [line for block in table.blocks for line in (r"\midrule", *(_row(row, cell) for row in block))]


def _finished(lines: Sequence[str]) -> str:
    text = "\n".join(line for line in lines if line) + "\n"
    return text if all(map(_is_common, text)) else f"{ENGINE}\n{text}"


def _is_common(character: str) -> bool:
    """Whether pdfLaTeX has it."""
    return character < "\u0300" or "\u2000" <= character < "\u2190"


def _head(column: Column) -> str:
    unit = f" ({escape(column.unit)})" if column.unit else ""
    return escape(column.name) + unit + _ARROWS[column.direction]


def _row(row: Row, cell: Callable[[Cell], str]) -> str:
    line = " & ".join(map(cell, row)) + r" \\"
    return f"{{}}{line}" if line.startswith(("[", "*")) else line  # else the line before would take it for its option


def _cell(cell: Cell) -> str:
    interval = _interval(cell)
    return f"{_value(cell)} {interval}" if interval else _value(cell)


def _stacked(cell: Cell) -> str:
    """The interval below the value: half as wide."""
    interval = _interval(cell)
    return rf"\shortstack[r]{{{_value(cell)}\\{interval}}}" if interval else _value(cell)


def _value(cell: Cell) -> str:
    text = "--" if cell.text == DASH else escape(cell.text)
    text = rf"\textbf{{{text}}}" if cell.bold else text
    if cell.value is not None:
        text += escape(format_spread(cell.sd, cell.value))
    return text


def _interval(cell: Cell) -> str:
    if cell.value is None or cell.interval is None:
        return ""
    return rf"{{\scriptsize {escape(format_interval(cell.interval, cell.value))}}}"


def escape(text: str) -> str:
    """Text on one line, safe outside math mode."""
    return "".join(_CHARACTERS.get(character, character) for character in plain(text))
