from __future__ import annotations

from segquant_bench.eval.tables.numbers import format_interval, format_spread
from segquant_bench.eval.tables.table import DASH, Cell, Column, Row, Table
from segquant_bench.texts import plain

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
    comment = f"% {plain(table.title)}" if table.title else f"{PACKAGES}; intervals are 95 % intervals"
    spec = "".join("l" if column.kind == "key" else "r" for column in table.columns)
    lines = [comment, rf"\begin{{tabular}}{{{spec}}}", r"\toprule"]
    lines.append(" & ".join(map(_head, table.columns)) + r" \\")
    for block in table.blocks:
        lines += [r"\midrule", *map(_row, block)]
    text = "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"
    return text if all(map(_is_common, text)) else f"{ENGINE}\n{text}"


def _is_common(character: str) -> bool:
    """Whether pdfLaTeX has it."""
    return character < "\u0300" or "\u2000" <= character < "\u2190"


def _head(column: Column) -> str:
    unit = f" ({escape(column.unit)})" if column.unit else ""
    return escape(column.name) + unit + _ARROWS[column.direction]


def _row(row: Row) -> str:
    line = " & ".join(map(_cell, row)) + r" \\"
    return f"{{}}{line}" if line.startswith(("[", "*")) else line  # else the line before would take it for its option


def _cell(cell: Cell) -> str:
    text = "--" if cell.text == DASH else escape(cell.text)
    text = rf"\textbf{{{text}}}" if cell.bold else text
    if cell.value is not None:
        text += escape(format_spread(cell.sd, cell.value))
    if cell.value is None or cell.interval is None:
        return text
    return rf"{text} {{\scriptsize {escape(format_interval(cell.interval, cell.value))}}}"


def escape(text: str) -> str:
    """Text on one line, safe outside math mode."""
    return "".join(_CHARACTERS.get(character, character) for character in plain(text))
