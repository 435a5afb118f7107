"""The picture grid: prompts in rows, methods in columns."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.report.drawing.lettering import Face, wrap
from segquant_bench.eval.report.runs.groups import data_key, sort_runs
from segquant_bench.eval.report.runs.labels import labels, prompts_name
from segquant_bench.eval.results import REFERENCE, RunResult

TILE = 128
LARGE_TILE = 224
GAP = 8
LABEL_WIDTH = 190
FONT_SIZE = 15
HEAD_LINES = 40
MOST_CHARACTERS = 200  # of a file's name; file systems take 255 bytes
INK, PALE, PAPER = (20, 20, 20), (110, 110, 110), (255, 255, 255)


@dataclass(frozen=True)
class GridColumn:
    """The method, the precision below it and the pictures."""

    title: str
    subtitle: str
    folder: Path


def grid_groups(runs: Sequence[RunResult]) -> dict[str, list[RunResult]]:
    """Runs that share prompts and latents, by their grid's file name."""
    groups: dict[object, list[RunResult]] = {}
    for run in sort_runs(runs):
        groups.setdefault(data_key(run), []).append(run)
    found: dict[str, list[RunResult]] = {}
    for members in groups.values():
        run = members[0]
        name = "grid" if not found else f"grid_{run.model}_{run.dataset}_{run.seed}"
        if f"{_safe(name)}.png" in found:
            name += f"_{prompts_name(run)}"
        # models whose names differ in other characters alone, or in settings of their own
        others = [f"{_safe(name)}_{number}" for number in range(2, len(groups) + 2)]
        found[next(f"{free}.png" for free in (_safe(name), *others) if f"{free}.png" not in found)] = members
    return found


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-")[:MOST_CHARACTERS]


def grid_columns(runs: Sequence[RunResult]) -> list[GridColumn]:
    """The unquantized model (its run, or another's reference), then every run."""
    names = labels(runs)
    found = []
    if not runs[0].is_float or runs[0].engine != REFERENCE:
        found.append(GridColumn("unquantized", "", _folder(runs[0], "reference")))
    for run in runs:
        found.append(GridColumn(names[id(run)], "" if run.is_float else run.precision, _folder(run, "images")))
    return found


def _folder(run: RunResult, kind: str) -> Path:
    folder = run.folder(kind)
    if folder is None or not folder.is_dir():
        raise EvalError(
            f"the {kind} pictures of {run.path} are not there ({folder}); run that job again, or leave the "
            "grid out with --no-grid"
        )
    return folder


def check_pictures(runs: Sequence[RunResult], rows: int) -> None:
    """EvalError if pictures that grids or the page would show are missing or empty; none is read."""
    for members in grid_groups(runs).values():
        shown = shown_prompts(members[0].prompts, rows)
        for column in grid_columns(members):
            for index in shown:
                _check_there(_picture_path(column, index))


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise EvalError(f"the picture {path} is not there; run that job again, or leave the grid out with --no-grid")
    if not path.stat().st_size:
        raise EvalError(f"the picture {path} is empty; run that job again, or leave the grid out with --no-grid")


def _picture_path(column: GridColumn, index: int) -> Path:
    return column.folder / f"{index:05d}.png"


def picture_grid(runs: Sequence[RunResult], rows: int = 8) -> bytes:
    """A PNG of `rows` prompts, evenly spread; EvalError if pictures are missing."""
    prompts = runs[0].prompts
    shown = shown_prompts(prompts, rows)
    columns = grid_columns(runs)
    tile = _tile_size(read_picture(columns[0], shown[0]))
    font, small = _font(FONT_SIZE, bold=True), _font(FONT_SIZE - 2)
    heads = [(wrap(c.title, font, tile, HEAD_LINES), wrap(c.subtitle, small, tile, HEAD_LINES)) for c in columns]
    line = FONT_SIZE + 5
    top = GAP + line * max(len(title) + len(subtitle) for title, subtitle in heads) + GAP
    lefts = _lefts(columns, tile)
    size = (lefts[-1] + tile + GAP, top + len(shown) * (tile + GAP))
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    for left, head in zip(lefts, heads, strict=True):
        _draw_head(draw, head, left, top, tile)
    for y, index in enumerate(shown):
        corner = top + y * (tile + GAP)
        _draw_prompt(draw, prompts[index], corner, tile)
        for left, column in zip(lefts, columns, strict=True):
            canvas.paste(_fit(read_picture(column, index), tile), (left, corner))
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def shown_prompts(prompts: Sequence[str], rows: int) -> list[int]:
    """Indices of at most `rows` prompts, evenly spread."""
    spread = np.linspace(0, len(prompts) - 1, min(rows, len(prompts))).round().astype(int)
    return [int(index) for index in np.unique(spread)]


def _lefts(columns: Sequence[GridColumn], tile: int) -> list[int]:
    found = [LABEL_WIDTH]
    for before, column in pairwise(columns):
        found.append(found[-1] + tile + GAP * (1 if column.subtitle == before.subtitle else 3))
    return found


def _draw_head(draw: ImageDraw.ImageDraw, head: tuple[list[str], list[str]], left: int, bottom: int, tile: int) -> None:
    lines = [(text, _font(FONT_SIZE, bold=True), INK) for text in head[0]]
    lines += [(text, _font(FONT_SIZE - 2), PALE) for text in head[1]]
    y = bottom - GAP // 2 - (FONT_SIZE + 5) * len(lines)
    for text, font, colour in lines:
        font.draw(draw, (left + tile / 2, y), text, colour, "ma")
        y += FONT_SIZE + 5


def _draw_prompt(draw: ImageDraw.ImageDraw, prompt: str, top: int, tile: int) -> None:
    font = _font(FONT_SIZE - 1)
    line = FONT_SIZE + 4
    most = max(tile // line, 1)
    lines = wrap(prompt, font, LABEL_WIDTH - 2 * GAP, most)
    y = top + (tile - line * len(lines)) / 2
    for text in lines:
        font.draw(draw, (LABEL_WIDTH - GAP, y), text, INK, "ra")
        y += line


@lru_cache(maxsize=8)
def _font(size: int, bold: bool = False) -> Face:
    return Face(size, bold)


def read_picture(column: GridColumn, index: int) -> Image.Image:
    path = _picture_path(column, index)
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for broken files
        raise EvalError(f"{path} cannot be read; run that job again or leave the grid out") from error


def _tile_size(picture: Image.Image) -> int:
    side = max(picture.size)
    return LARGE_TILE if side > LARGE_TILE else side * max(TILE // side, 1)


def _fit(picture: Image.Image, tile: int) -> Image.Image:
    side = max(picture.size)
    width, height = (max(round(edge * tile / side), 1) for edge in picture.size)
    kind = Image.Resampling.NEAREST if tile % side == 0 else Image.Resampling.LANCZOS
    square = Image.new("RGB", (tile, tile), PAPER)
    square.paste(picture.resize((width, height), kind), ((tile - width) // 2, (tile - height) // 2))
    return square
