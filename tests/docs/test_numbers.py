"""The numbers of README are those of the tables that the report wrote."""

from __future__ import annotations

import csv
import re

from tests.docs.pages import read

_NUMBER = re.compile(r"−?(?:\d+\.?\d*|\.\d+)")
DEMO = ("precision", "method", "fid_ref", "psnr", "layer error", "output error", "weights")


def _rows(text: str) -> list[list[str]]:
    """Cells of every row of the Markdown tables, emphasis and rules left out."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not set(line) <= set("|-: ")]
    return [[cell.strip().replace("*", "") for cell in line.strip("|").split("|")] for line in lines]


def _tables(text: str) -> list[tuple[list[str], list[list[str]]]]:
    """(header, rows) of every table of the page."""
    found = []
    for part in re.split(r"\n(?!\|)", text):
        rows = _rows(part)
        if rows:
            found.append((rows[0], rows[1:]))
    return found


def _demo() -> dict[tuple[str, str], dict[str, list[str]]]:
    """(precision, method) -> column -> its numbers as written, of docs/demo/table.md."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for header, rows in _tables(read("docs/demo/table.md")):
        for row in rows:
            cells = found.setdefault((row[0], row[1]), {})
            cells.update({name: _NUMBER.findall(cell) for name, cell in zip(header[2:], row[2:], strict=True)})
    return found


def _equal(written: str, exact: str) -> bool:
    """Whether `written` is `exact`, or `exact` rounded to as many digits."""
    digits = len(written.partition(".")[2])
    return float(written) == round(float(exact), digits)


def _check(table: tuple[list[str], list[list[str]]]) -> int:
    header, rows = table
    exact = _demo()
    count = 0
    for row in rows:
        columns = exact[row[0], row[1]]
        for name, cell in zip(header[2:], row[2:], strict=True):
            word = re.split(r"[\[,↓↑]", name)[0].strip()
            (column,) = [key for key in columns if key.startswith(word)]
            numbers = _NUMBER.findall(cell)
            assert all(_equal(a, b) for a, b in zip(numbers, columns[column], strict=False)), (row, name)
            count += len(numbers)
    return count


def test_demo_table_of_readme() -> None:
    text = read("README.md").partition("<!-- demo:begin -->")[2].partition("<!-- demo:end -->")[0]
    (table,) = _tables(text)
    assert [name.startswith(word) for name, word in zip(table[0], DEMO, strict=True)] == [True] * len(DEMO)
    assert {(row[0], row[1]) for row in table[1]} == set(_demo())
    assert _check(table) == 44


def test_demo_page() -> None:
    (table,) = _tables(read("docs/demo/README.md"))
    assert _check(table) == 80


def test_main_summary_of_readme() -> None:
    """The summary's cells against the rows of docs/main/README.md."""
    (_, rows), *_ = _tables(read("docs/main/README.md"))
    found: dict[str, dict[str, str]] = {}
    precision = ""
    for row in rows:
        precision = row[0] or precision
        found.setdefault(precision, {})[row[1]] = _NUMBER.findall(row[2])[0]
    header, summary = next(table for table in _tables(read("README.md")) if table[0][0] == "at")
    for row in summary:
        for precision, cell in zip(header[1:], row[1:], strict=True):
            exact = found[precision]
            if row[0].startswith("best of other"):
                values = [value for name, value in exact.items() if "best tool" in name]
            elif row[0].startswith("best published"):
                values = [value for name, value in exact.items() if "baseline" in name or name == "quarot"]
            else:
                values = [exact[row[0].partition(",")[0]]]
            assert float(cell) == min(map(float, values)), (row[0], precision)


def test_layouts_are_those_of_the_comparisons() -> None:
    exact = {}
    for pair in csv.DictReader(read("docs/layouts/comparisons.csv").splitlines()):
        form = tuple(item.partition("=")[2] for item in pair["a"].split()[1:])
        exact[pair["where"], form, pair["metric"].partition("[")[0]] = pair
    ((header, rows),) = _tables(read("docs/layouts/README.md"))
    model, count = "", 0
    for row in rows:
        model = row[1] or model
        for name, cell in zip(header[4:], row[4:], strict=True):
            pair = exact[model, (row[2], row[3]), name.partition(",")[0]]
            written = [number.replace("−", "-") for number in _NUMBER.findall(cell)]
            assert all(
                _equal(a, pair[key]) for a, key in zip(written, ("value", "value.low", "value.high"), strict=True)
            )
            count += 3
    assert count == 12 * len(rows) == 12 * (len(exact) // 4)
