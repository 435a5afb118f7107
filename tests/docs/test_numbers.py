"""The numbers of README are those of the tables that the report wrote."""

from __future__ import annotations

import csv
import re

import pytest

from segquant_bench.eval.report.runs.known import is_ours
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


def _exact(page: str) -> dict[tuple[str, str], dict[str, list[str]]]:
    """(precision, method) -> column -> its numbers as written, of a table.md of one model."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for header, rows in _tables(read(page)):
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
    exact = _exact("docs/demo/table.md")
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
    assert {(row[0], row[1]) for row in table[1]} == set(_exact("docs/demo/table.md"))
    assert _check(table) == 72


def test_demo_page() -> None:
    (table,) = _tables(read("docs/demo/README.md"))
    assert _check(table) == 132


def _interval(cell: str) -> tuple[float, float] | None:
    found = re.search(r"\[(.*), (.*)\]", cell)
    return None if found is None else (float(found[1]), float(found[2]))


def test_bold_numbers_of_the_demo_are_apart_at_comparable_bytes() -> None:
    """By the intervals and megabytes that the page itself prints; README has the same cells in bold."""
    lines = [
        line.strip("| \n").split(" | ") for line in read("docs/demo/README.md").splitlines() if line.startswith("| w")
    ]
    bold, expected = set(), set()
    for mine in lines:
        group = [line for line in lines if line[0] == mine[0] and line is not mine]
        rivals = [line for line in group if float(line[-1]) <= 1.02 * float(mine[-1])]
        near = [line for line in rivals if float(mine[-1]) <= 1.02 * float(line[-1])]
        for column, higher in ((2, False), (3, True), (4, False), (5, False)):
            bold |= {(mine[0], mine[1], column)} if "**" in mine[column] else set()
            edges = [_interval(line[column]) for line in rivals]
            own = _interval(mine[column])
            assert own is not None and None not in edges
            if near and all(own[0] > edge[1] if higher else own[1] < edge[0] for edge in edges if edge is not None):
                expected.add((mine[0], mine[1], column))
    assert bold == expected and len(bold) == 5
    short = [
        line.strip("| \n").split(" | ") for line in read("README.md").splitlines() if line.startswith(("| w8", "| w4"))
    ]
    assert {(line[0], line[1], i) for line in short for i, cell in enumerate(line) if "**" in cell} == bold


def _alike(one: str, other: str) -> bool:
    """Whether two numbers are equal as far as both are written."""
    digits = min(len(text.partition(".")[2]) for text in (one, other))
    return abs(float(one) - float(other)) < 0.51 * 10**-digits


TOOLS = ("modelopt_", "torchao_", "quanto", "sdnq", "bnb_", "gguf")


def test_the_main_page_has_the_numbers_of_its_table() -> None:
    exact = _exact("docs/main/table.md")
    (header, rows), *_ = _tables(read("docs/main/README.md"))
    precision = ""
    for row in rows:
        precision = row[0] or precision
        name, *rest = row[1].replace(",", "").split()
        budgets = [
            f"{name} budget.bytes={size} budget.average_bits={bits}" for size, bits in (("1.1", "none"), ("1.2", "4.5"))
        ]
        (label,) = [
            each for each in (name, *budgets) if (precision, each) in exact and ("4.5" in each) == ("4.5" in rest)
        ]
        columns = exact[precision, label]
        for title, cell in zip(header[2:], row[2:], strict=True):
            word = re.split(r"[\[,↓↑]", title)[0].strip()
            (column,) = [key for key in columns if key.startswith(word)]
            assert all(_alike(a, b) for a, b in zip(_NUMBER.findall(cell), columns[column], strict=True)), (row, title)
        kinds = {
            "(tool)": name.startswith(TOOLS),
            "(baseline)": name not in ("quarot", "vidit_q") and not is_ours(name),
        }
        assert all(kinds[word] for word in rest if word in kinds)
        if "(tool)" in rest or "(baseline)" in rest:
            tool = "(tool)" in rest
            alike = [
                float(cells["fid_ref [effnet_lite0] ↓"][0])
                for (at, method), cells in exact.items()
                if at == precision and method.startswith(TOOLS) == tool and not is_ours(method) and method != "quarot"
            ]
            assert float(columns["fid_ref [effnet_lite0] ↓"][0]) == min(alike), (precision, name)


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
            if row[0] == "least of other people's tools":
                values = [value for name, value in exact.items() if "(tool)" in name]
            elif row[0] == "least of published baselines":
                values = [value for name, value in exact.items() if "(baseline)" in name or name == "quarot"]
            else:
                values = [exact[row[0].partition(",")[0]]]
            assert float(cell) == min(map(float, values)), (row[0], precision)


def test_layouts_are_those_of_the_comparisons() -> None:
    exact = {}
    for pair in csv.DictReader(read("docs/layouts/comparisons.csv").splitlines()):
        form = tuple(item.partition("=")[2] for item in pair["a"].split()[1:])
        exact[pair["where"], form, pair["metric"].partition("[")[0]] = pair
    ((header, _),) = _tables(read("docs/layouts/README.md"))
    lines = [line for line in read("docs/layouts/README.md").splitlines() if line.startswith("|")][2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    model, count = "", 0
    for row in rows:
        model = row[1] or model
        for name, cell in zip(header[4:], row[4:], strict=True):
            pair = exact[model, (row[2], row[3]), name.partition(",")[0]]
            written = [number.replace("−", "-") for number in _NUMBER.findall(cell)]
            assert all(
                _equal(a, pair[key]) for a, key in zip(written, ("value", "value.low", "value.high"), strict=True)
            )
            assert ("**" in cell) == (pair["verdict"] == "worse"), (row, name)
            count += 3
    assert count == 12 * len(rows) == 12 * (len(exact) // 4)


@pytest.mark.parametrize("page, places", [("table", (0, 2)), ("unet", (1,))])
def test_formats_page(page: str, places: tuple[int, ...]) -> None:
    """Every cell is that of the model's table, rounded; what has not run is a dash."""
    exact = _exact(f"docs/formats/{page}.md")
    tables = [found for found in _tables(read("docs/formats/README.md")) if found[0][0] == "precision"]
    assert len(tables) == 3 and {row[0] for row in tables[places[0]][1]} == {precision for precision, _ in exact} - {
        "float32"
    }
    count = 0
    for header, rows in (tables[place] for place in places):
        for row in rows:
            method = "rtn" if header[2].startswith("rtn") else "gptq_mse"
            for name, written in zip(header[1:], row[1:], strict=True):
                method = name.partition(":")[0] if ":" in name else method
                if written == "–":
                    assert (row[0], method) not in exact
                    continue
                start = {"weights": "weights", "psnr": "psnr"}.get(
                    name.split(": ")[-1].partition(",")[0], "output error"
                )
                (column,) = [key for key in exact[row[0], method] if key.startswith(start)]
                numbers = _NUMBER.findall(written)
                pairs = zip(numbers, exact[row[0], method][column], strict=False)
                assert all(_alike(*pair) for pair in pairs), (row[0], method, start)
                count += len(numbers)
    assert count > 200


def test_formats_against_formats() -> None:
    exact = {}
    for pair in csv.DictReader(read("docs/formats/pairs.csv").splitlines()):
        assert pair["a"] == pair["b"]
        exact[pair["where"], pair["precision"], pair["a"], pair["metric"]] = pair
    lines = read("docs/formats/README.md").split("| formats |")[1].split("<!-- end")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    columns = [(model, metric) for model in ("emoji_sd3", "emoji_sdxl") for metric in ("psnr", "output error")]
    for row in rows:
        for (model, metric), cell in zip(columns, row[2:], strict=True):
            if cell == "–":
                assert (model, row[0], row[1], metric) not in exact
                continue
            pair = exact[model, row[0], row[1], metric]
            written = [number.replace("−", "-") for number in _NUMBER.findall(cell)]
            assert all(
                _alike(a, pair[key]) for a, key in zip(written, ("value", "value.low", "value.high"), strict=True)
            ), (row, metric)
            assert ("**" in cell) == (pair["verdict"] in ("better", "worse")), (row, metric)
    assert len(rows) * 8 == len(exact)
