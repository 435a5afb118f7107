"""The page in a real browser: what a reader does with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segquant_bench.eval.render import write_report
from segquant_bench.eval.report.page import results
from segquant_bench.eval.report.page.render import Page, render_page
from segquant_bench.eval.results import RunResult, load_results
from segquant_bench.eval.tables.numbers import format_number
from tests.eval.report.page.browser import Browser, find_browser
from tests.eval.report.support import psnr, run
from tests.eval.support import noisy, smooth_pictures, write_pictures
from tests.eval.sweep import run_record

program = find_browser()
pytestmark = pytest.mark.skipif(program is None, reason="needs Chromium or Chrome")
PROMPTS = ("a </script><script>document.title = 'broken'</script>", "egg", "<img src=x onerror=\"document.title='b'\">")
METHODS = {"rtn": 24.0, "smoothquant": 16.0, "</script><b>gptq</b>": 12.0, "segquant_g": 8.0}
PSNR = {"rtn": 20.0, "smoothquant": 22.0, "</script><b>gptq</b>": 31.0, "segquant_g": 40.0}
ROW = "#results-table tr[data-row]"


def _metric(value: float) -> dict:
    return {
        "name": "psnr", "value": value, "n": 3, "direction": "higher", "interval": [value - 1, value + 1],
        "backend": "x", "against": "reference", "unit": "dB",
    }  # fmt: skip


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine runs with pictures and steps, and a failed one; names and prompts that would like to be tags."""
    root = tmp_path_factory.mktemp("sweep")
    clean = smooth_pictures(len(PROMPTS), 16, seed=0)
    write_pictures(root / "reference", clean)
    jobs = [("none", "w8a8", 0.0), *((name, p, s) for p in ("w8a8", "w4a8") for name, s in METHODS.items())]
    for job, (name, precision, sigma) in enumerate(jobs):
        value = PSNR.get(name, 99.0) - (5.0 if precision == "w4a8" else 0.0)
        record = run_record(name, precision, sigma, PROMPTS, [_metric(value)])
        record |= {"artifacts": {"images": "images", "reference": "reference", "evaluation": "evaluation"}}
        record["per_row_steps"] = [index % 4 for index in range(len(record["per_row_output_errors"]))]
        record["stages"]["quantize"]["key"] = str(job)
        if sigma:
            by_step = {layer: [error, None, 2 * error] for layer, error in record["layer_errors"].items()}
            record["layer_step_errors"] = {"steps": [0, 3, 5], "layers": by_step}
        folder = root / f"{job} #%25"
        write_pictures(folder / "images", noisy(clean, sigma, seed=1) if sigma else clean)
        (folder / "results.json").write_text(json.dumps(record))
        per_image = {"metrics": {"psnr": [value - 1, value, value + 1]}}
        (folder / "reference").symlink_to("../reference")
        (folder / "evaluation").mkdir()
        (folder / "evaluation" / "per_image.json").write_text(json.dumps(per_image))
    (root / "failed").mkdir()
    (root / "failed" / "failure.json").write_text(json.dumps({"message": "the <b>disk</b> is full"}))
    write_report([root], rows=3, figures=())
    return root


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert program is not None
    opened = Browser(program, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture
def page(browser: Browser, sweep: Path) -> Browser:
    browser.open(sweep / "report.html")
    return browser


@pytest.fixture(scope="module")
def runs(sweep: Path) -> list[RunResult]:
    return load_results([sweep])


def labels(page: Browser) -> list[str]:
    return page.run(f"[...document.querySelectorAll('{ROW}')].map((row) => row.cells[0].textContent)")


def type_search(page: Browser, text: str) -> None:
    page.run(f"(() => {{ const s = document.getElementById('search'); s.value = {json.dumps(text)};"
             " s.dispatchEvent(new Event('input')); })()")  # fmt: skip


def column(page: Browser, title: str) -> int:
    heads = page.run("[...document.querySelectorAll('#results-table thead th')].map((head) => head.textContent)")
    return next(index for index, head in enumerate(heads) if head.startswith(title))


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_it_opens_alone_and_fits(browser: Browser, sweep: Path, width: int, dark: bool) -> None:
    browser.open(sweep / "report.html", width, dark=dark)
    assert browser.problems == [], "no script fails, and nothing of the texts runs"
    assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []
    assert browser.run("document.title") == "Quantization of emoji_sd3"
    assert browser.run("document.documentElement.scrollWidth") == width, "no part is wider than the window"
    paper = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper.strip("rgb()").split(","))) < 384) is dark
    assert browser.run("document.querySelectorAll('script:not([type])').length") == 1
    bold = browser.run("[...document.querySelectorAll('b')].map((element) => element.textContent)")
    assert not {"gptq", "disk"} & set(bold), "tags in names and messages stay texts"


def test_the_top_says_what_was_found(page: Browser) -> None:
    top = page.run("document.getElementById('summary').innerText")
    assert "8 quantized runs of emoji_sd3 at 2 precisions, each judged by 3 pictures" in top
    assert "1 run failed" in top
    images = page.run(
        "[...document.querySelectorAll('.hero img')].map((image) => image.complete && image.naturalWidth)"
    )
    assert images == [16] * 10


def test_a_head_sorts(page: Browser, runs: list[RunResult]) -> None:
    values = {(run.quantizer, run.precision): run.metrics[0].value for run in runs}
    best = [name for name, _ in sorted(PSNR.items(), key=lambda item: -item[1])]
    psnr = column(page, "psnr")
    page.click(f"#results-table thead th:nth-child({psnr + 1}) button")
    assert labels(page) == ["unquantized", *best, *best], "within precisions, the best first"
    page.click("#grouped")
    expected = sorted(values, key=lambda key: -values[key])
    assert labels(page) == ["unquantized" if name == "none" else name for name, _ in expected]
    page.click(f"#results-table thead th:nth-child({psnr + 1}) button")
    assert labels(page) == ["unquantized" if name == "none" else name for name, _ in reversed(expected)]
    sort = page.run(f"document.querySelectorAll('#results-table thead th')[{psnr}].getAttribute('aria-sort')")
    assert sort == "ascending"


def test_search_filters_table_and_charts(page: Browser) -> None:
    type_search(page, "quant psnr>25")
    assert labels(page) == ["unquantized", "segquant_g", "segquant_g"]
    assert page.run("document.getElementById('count').textContent") == "3 of 9 runs"
    page.run("document.getElementById('pareto').scrollIntoView()")
    page.wait("document.querySelectorAll('#pareto .dot').length === 2")
    type_search(page, "w4a8")
    page.wait("document.querySelectorAll('#pareto .dot').length === 4")
    type_search(page, "nothing of that name")
    assert labels(page) == []
    assert "Nothing to draw" in page.run("document.getElementById('pareto').innerText")


def test_columns_can_be_hidden(page: Browser) -> None:
    seen = f"[...document.querySelectorAll('{ROW}[data-row=\"1\"] > *')].filter((cell) => cell.offsetWidth).length"
    before = page.run(seen)
    page.click("#columns summary")
    page.click("#column-list input:checked")
    assert page.run(seen) == before - 1
    page.run("document.querySelectorAll('#column-list input:not(:checked)').forEach((box) => box.click())")
    assert page.run(seen) == page.run("document.querySelectorAll('#results-table thead th').length")


def test_a_number_shows_its_pairs_by_mouse_and_keyboard(page: Browser) -> None:
    psnr = column(page, "psnr")
    page.click(f"#results-table tbody:nth-of-type(2) tr:nth-child(5) td:nth-child({psnr + 1})")
    told = page.run("document.getElementById('dialog').innerText")
    assert page.run("document.getElementById('dialog').open")
    assert "segquant_g, w8a8" in told and "segquant_g vs rtn" in told and "+20.0 dB" in told and "better" in told
    page.press("Escape")
    assert not page.run("document.getElementById('dialog').open")
    page.press("ArrowUp")
    page.press("Enter", "\r")
    told = page.run("document.getElementById('dialog').innerText")
    assert "</script><b>gptq</b>, w8a8" in told and "segquant_g vs </script><b>gptq</b>" in told


def test_error_against_cost_marks_what_nothing_beats(page: Browser, runs: list[RunResult]) -> None:
    points = {(r.quantizer, r.precision): (r.weight_bytes, -r.metrics[0].value) for r in runs if not r.is_float}
    front = {
        key for key, (cost, error) in points.items()
        if not any((c, e) != (cost, error) and c <= cost and e <= error for c, e in points.values())
    }  # fmt: skip
    page.run("document.getElementById('pareto').scrollIntoView()")
    page.wait("document.querySelectorAll('#pareto .dot').length")
    found = page.run("[...document.querySelectorAll('#pareto .on-front')].map((dot) => dot.getAttribute('aria-label'))")
    assert {tuple(text.split(":")[0].rsplit(", ", 1)) for text in found} == front
    page.run("document.querySelector('#pareto .on-front').focus()")
    assert "psnr" in page.run("document.getElementById('tip').innerText")


@pytest.fixture(scope="module")
def searched(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep's page with two searches: of two objectives, whose trials are its runs but one, and of one."""
    root = tmp_path_factory.mktemp("searched") / "sweep"
    shutil.copytree(sweep, root, symlinks=True)
    values = [(0.3, 30.0), (0.1, 20.0), (0.4, 10.0), (0.2, "inf"), (0.05, 5.0)]
    trials = [
        {"number": n, "folder": f"{n + 1} #%25" if n < 4 else "../elsewhere", "state": "complete", "values": list(each),
         "params": {"+quantizer.alpha": 0.1 * n, "name": "</script><b>x</b>"}}
        for n, each in enumerate(values)
    ]  # fmt: skip
    trials.append({"number": 5, "folder": "5", "state": "pruned", "values": [], "params": {}})
    both = {"schema": 1, "objectives": {"output_error": "minimize", "psnr": "maximize"}, "trials": trials}
    (root / "study.json").write_text(json.dumps(both))
    one = [{**trial, "values": trial["values"][:1], "folder": ""} for trial in trials]
    (root / "x").mkdir()
    (root / "x" / "study.json").write_text(
        json.dumps({"schema": 1, "objectives": {"output_error": "minimize"}, "trials": one})
    )
    write_report([root], rows=0, grid=False, figures=())
    return root / "report.html"


def _list(page: Browser, search: int) -> list[list[str]]:
    rows = f"document.querySelectorAll('#search-{search} .front-list tbody tr')"
    return page.run(f"[...{rows}].map((row) => [...row.cells].map((cell) => cell.textContent))")


@pytest.mark.parametrize("width", [1280, 390])
def test_a_search_has_its_front_as_a_chart_and_a_list(browser: Browser, searched: Path, width: int) -> None:
    browser.open(searched, width)
    browser.run("document.getElementById('search-0').scrollIntoView()")
    browser.wait("document.querySelectorAll('#search-0 .dot').length")
    dots = "[...document.querySelectorAll('#search-0 .dot{}')].map((dot) => dot.dataset.trial)"
    assert browser.run(dots.format("")) == ["0", "1", "2", "4"], "an infinite value has no place"
    assert browser.run(dots.format(".on-front")) == ["1", "4"]
    assert browser.run("document.querySelectorAll('#search-0 path.front').length") == 1
    listed = _list(browser, 0)
    assert [row[0] for row in listed] == ["4", "1", "3"] and [row[2] for row in listed] == ["5.00", "20.0", "∞"]
    assert listed[1][3] == "quantizer.alpha=0.1 name=</script><b>x</b>"
    assert [row[4] for row in listed] == ["–", "folder", "folder"], "no link leads out of the search's folder"
    told = browser.run("document.getElementById('search-0').innerText")
    assert "5 trials with values, 1 without" in told and "psnr (higher is better)" in told
    assert browser.problems == [] and browser.run("document.documentElement.scrollWidth") == width
    browser.run("document.querySelector('#search-0 .dot[data-trial=\"1\"]').focus()")
    assert "output_error: 0.100" in browser.run("document.getElementById('tip').innerText")
    browser.press("Enter", "\r")
    shown = browser.run("document.getElementById('dialog').innerText")
    assert "smoothquant, w8a8" in shown and "All numbers of this run" in shown
    browser.press("Escape")
    browser.click("#search-0 .front-list tbody tr:nth-child(1) button")
    shown = browser.run("document.getElementById('dialog').innerText")
    assert shown.startswith("trial 4") and "psnr: 5.00" in shown, "of no run of the page"


def test_a_search_of_one_objective(browser: Browser, searched: Path) -> None:
    browser.open(searched)
    browser.run("document.getElementById('search-1').scrollIntoView()")
    browser.wait("document.querySelectorAll('#search-1 .dot').length === 5")
    assert [row[0] for row in _list(browser, 1)] == ["4"]
    assert browser.run("document.querySelectorAll('#search-1 select, #search-1 path.front').length") == 0
    assert (
        browser.run("document.querySelectorAll('#search-1 .on-front')[0].getAttribute('aria-label')")
        == "trial 4: 0.0500"
    )


def test_the_other_objective_across(browser: Browser, searched: Path) -> None:
    browser.open(searched)
    browser.run("document.getElementById('search-0').scrollIntoView()")
    browser.wait("document.querySelectorAll('#search-0 .dot').length")
    browser.run("(() => { const [x, y] = document.querySelectorAll('#search-0 select'); x.value = 0; y.value = 1;"
                " y.dispatchEvent(new Event('change')); })()")  # fmt: skip
    label = browser.run("document.querySelector('#search-0 svg').getAttribute('aria-label')")
    assert label == "psnr against output_error (lower is better), 4 trials"


def test_lines_and_layers_are_drawn(page: Browser, runs: list[RunResult]) -> None:
    page.run("document.getElementById('lines-timesteps').scrollIntoView()")
    page.wait("document.querySelectorAll('#lines-timesteps .series').length === 4")
    assert page.run("document.querySelectorAll('#lines-timesteps .series')[0].querySelectorAll('.mark').length") == 4
    page.run("document.getElementById('heat').scrollIntoView()")
    page.wait("document.querySelectorAll('#heat rect[data-tip]').length === 4 * 40")
    worst = next(run for run in runs if (run.quantizer, run.precision) == ("rtn", "w4a8"))
    layer = max(worst.layer_errors, key=worst.layer_errors.__getitem__)
    dark = page.run("[...document.querySelectorAll('#heat .h8')].map((cell) => cell.getAttribute('aria-label'))")
    assert any(text.startswith(f"rtn, {layer}: ") for text in dark)
    page.run("(() => { const run = document.querySelectorAll('#heat select')[1]; run.value = run.options[1].value;"
             " run.dispatchEvent(new Event('change')); })()")  # fmt: skip
    steps = page.run(
        "[...document.querySelectorAll('#heat svg.heat > g > text:first-child')].map((e) => e.textContent)"
    )
    assert steps[:3] == ["step 1", "step 4", "step 6"], "counted from one"
    cells = page.run("[...document.querySelectorAll('#heat rect[data-tip]')].map((e) => e.getAttribute('aria-label'))")
    shown = next(run for run in runs if not run.is_float)
    assert len(cells) == 2 * 40, "a layer has no cell at a step where nothing is known of it"
    first, error = next(iter(shown.layer_errors.items()))
    assert f"step 6, {first}: {format_number(2 * error)}" in cells


def test_two_methods_are_compared_and_pictures_zoom(page: Browser, sweep: Path) -> None:
    page.run("document.getElementById('pictures').scrollIntoView()")
    page.wait("document.querySelector('.stage canvas')?.width === 16")
    page.run("(() => { const [prompt, a, b] = document.querySelectorAll('#compare select'); prompt.value = 1;"
             " a.value = 0; b.value = 1; b.dispatchEvent(new Event('change')); })()")  # fmt: skip
    page.wait("document.querySelectorAll('.stage figcaption')[1].textContent.includes('psnr')")
    told = page.run("document.querySelectorAll('.stage figcaption')[1].textContent")
    name = page.run("document.querySelectorAll('#compare select')[2].selectedOptions[0].textContent")
    job = next(path for path in sweep.glob("*/results.json") if _told(path) == name)
    pictures = [np.asarray(Image.open(folder / "00001.png").convert("RGB"), dtype=np.float64)
                for folder in (sweep / "reference", job.parent / "images")]  # fmt: skip
    gaps = pictures[0] - pictures[1]
    assert f"at most {np.abs(gaps).max():.0f} of 255" in told
    assert f"psnr {10 * np.log10(255**2 / (gaps**2).mean()):.1f} dB" in told
    page.click(".grid-table tbody tr:nth-child(2) td:nth-of-type(1) button")
    assert page.run("document.querySelector('.zoomed').alt") == "egg, unquantized"
    page.press("ArrowRight")
    assert page.run("document.querySelector('.zoomed').alt.startsWith('egg, ')")
    file = page.run("document.querySelector('.steps a').href")
    assert file.endswith("/images/00001.png") and "%23%2525" in file, "names are encoded"


def _told(path: Path) -> str:
    record = json.loads(path.read_text())
    return f"{record['quantizer']} {record['precision']}"


def test_hundreds_of_runs_are_shown_in_parts(browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "AT_ONCE", 5)
    made = [run(job, "rtn", name=f"r{job:02}", metrics=(psnr(float(job)),)) for job in range(12)]
    (tmp_path / "report.html").write_text(render_page(Page(made, (), tmp_path)))
    browser.open(tmp_path / "report.html")
    assert labels(browser) == [f"r{job:02}" for job in range(5)]
    browser.click(f"#results-table thead th:nth-child({column(browser, 'psnr') + 1}) button")
    assert labels(browser) == [f"r{job:02}" for job in range(11, 6, -1)], (
        "the first five of all, not of those shown before"
    )
    type_search(browser, "psnr<3")
    assert labels(browser) == ["r02", "r01", "r00"] and browser.run("document.getElementById('more').hidden")
    type_search(browser, "")
    assert browser.run("document.getElementById('more').textContent") == "Show all 12 runs (5 are shown)"
    browser.click("#more button")
    assert len(labels(browser)) == 12
    assert browser.run(f"[...document.querySelectorAll('{ROW}')].every((row) => row.offsetHeight)")


def test_a_thousand_runs_open_and_sort_in_a_moment(browser: Browser, tmp_path: Path) -> None:
    layers = {f"blocks.{block}.linear": 0.01 + block / 100 for block in range(40)}
    made = [
        run(job, f"m{job % 40}", precision=f"w{job // 40}", metrics=(psnr(float(job)),), layer_errors=layers)
        for job in range(1000)
    ]
    (tmp_path / "report.html").write_text(render_page(Page(made, (), tmp_path)))
    before = sum(browser.cpu_seconds().values())
    browser.open(tmp_path / "report.html")
    opened = sum(browser.cpu_seconds().values())
    browser.click(f"#results-table thead th:nth-child({column(browser, 'psnr') + 1}) button")
    assert len(labels(browser)) == results.AT_ONCE
    assert opened - before < 3 and sum(browser.cpu_seconds().values()) - opened < 3, "of CPU, also on a busy machine"
    assert browser.run("document.querySelectorAll('*').length") < 10_000, "others are laid out when they are asked for"
