"""Prompts from archives, lists or tables."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from segquant_bench.pipelines.data.pictures import DAMAGED, Picture, list_folder, stays_below
from segquant_bench.pipelines.errors import PipelineError, one_line

log = logging.getLogger(__name__)

PROMPT_COLUMNS = ("prompt", "caption", "text")
PICTURE_COLUMNS = ("file", "file_name", "image")
SPLITS = ("evaluation", "calibration")


@dataclass(frozen=True)
class Entry:
    """A prompt, its name and picture; PipelineError for text that no file can hold."""

    key: str
    prompt: str
    picture: Picture | None = None

    def __post_init__(self) -> None:
        half = next((character for character in self.prompt if "\ud800" <= character <= "\udfff"), None)
        if half is not None:
            raise PipelineError(
                f"the prompt of {self.key} has half of a character (U+{ord(half):04X}), which no tokenizer takes; "
                "write it whole, for example with json.dumps(…, ensure_ascii=False)"
            )


@dataclass(frozen=True)
class Source:
    """What a data set has.

    Attributes:
        evaluation: entries in the files' order.
        calibration: entries; None where both are drawn from `evaluation`.
        real: pictures to judge against; empty: those of the drawn prompts.
    """

    evaluation: list[Entry]
    calibration: list[Entry] | None = None
    real: tuple[Picture, ...] = ()


def read_text(path: Path, what: str, newline: str | None = None) -> str:
    """Without byte order mark; PipelineError, naming the file as `what`, if unreadable.

    Line ends are "\\n", or stay as they are where `newline` is "".
    """
    try:
        with path.open(encoding="utf-8-sig", newline=newline) as file:
            return file.read()
    except FileNotFoundError as error:
        raise PipelineError(f"{what} {path} is not there; give the path of a file that is") from error
    except OSError as error:
        why = error.strerror or one_line(error)
        raise PipelineError(f"{what} {path} cannot be read ({why}); give a file that can") from error
    except UnicodeDecodeError as error:
        raise PipelineError(f"{what} {path} is no text in UTF-8 ({one_line(error)}); save it as such") from error


def parse_json(text: str, what: str, path: Path, number: int | None = None) -> Any:
    """PipelineError names file and line."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        line = "" if number is None else f"line {number} of "
        raise PipelineError(f"{line}{what} {path} is no JSON: {one_line(error)}; get or write it again") from error


def load_yaml(text: str, what: str, path: Path) -> Any:
    # libyaml, where it is there, is much faster.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        raise PipelineError(f"{what} {path} is no YAML: {one_line(error)}; get or write it again") from error


def read_archive(archive: Path) -> Source:
    """A zip of captions.jsonl (file, caption, split) and PNGs, all of the split judged against."""
    try:
        with zipfile.ZipFile(archive) as file:
            text = file.read("captions.jsonl").decode("utf-8-sig")
            names = set(file.namelist())
    except DAMAGED as error:
        raise PipelineError(
            f"data set {archive} cannot be read ({one_line(error)}); it must be a zip with captions.jsonl"
        ) from error
    what = "captions.jsonl in"
    rows = [parse_json(line, what, archive, n) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not rows:
        raise PipelineError(f"captions.jsonl in {archive} is empty; write one JSON object a line")
    for row in rows:
        if not isinstance(row, dict) or not {"file", "caption", "split"} <= row.keys():
            raise PipelineError(f"a line of captions.jsonl in {archive} lacks file, caption or split: {row}")
        if not (isinstance(row["file"], str) and isinstance(row["split"], str) and _has_caption(row)):
            raise PipelineError(f"a line of captions.jsonl in {archive} has a value that is no text: {row}; correct it")
        if row["file"] not in names:
            raise PipelineError(f"{archive} lacks the picture {row['file']} that captions.jsonl names; build it again")
    others = sorted({row["split"] for row in rows} - set(SPLITS))
    if others:
        number = sum(row["split"] in others for row in rows)
        log.warning("%d lines of %s have other splits (%s): left out", number, archive, one_line(", ".join(others)))
    split: dict[str, list[Entry]] = {name: [] for name in SPLITS}
    for row in rows:
        if row["split"] in split:
            split[row["split"]].append(Entry(row["file"], str(row["caption"]), Picture(archive, row["file"])))
    pictures = tuple(Picture(archive, entry.key) for entry in split["evaluation"])
    return Source(split["evaluation"], split["calibration"], pictures)


def _has_caption(row: Mapping[str, Any]) -> bool:
    return _says(row["caption"]) and bool(str(row["caption"]).strip())


def read_prompts(path: Path) -> list[Entry]:
    """One prompt a line; .yaml of {name: prompt}; .csv or .jsonl with a column of prompts."""
    kind = path.suffix.lower()
    if kind in (".csv", ".jsonl"):
        return [Entry(key, prompt) for key, prompt, _, _ in _table_rows(path)]
    text = read_text(path, "prompt file")
    if kind in (".yaml", ".yml"):
        named = load_yaml(text, "prompt file", path) or {}
        if not isinstance(named, dict) or not all(isinstance(prompt, str) for prompt in named.values()):
            raise PipelineError(f"prompt file {path} must map names to prompts; write NAME: PROMPT lines")
        empty = next((key for key, prompt in named.items() if not prompt.strip()), None)
        if empty is not None:
            raise PipelineError(f"{empty} in prompt file {path} has no text; write some, or take {empty} out")
        entries = [Entry(str(key), prompt.strip()) for key, prompt in named.items()]
    else:
        # not splitlines(): separators of Unicode and form feeds are part of a prompt
        lines = [line.strip() for line in text.split("\n")]
        entries = [Entry(str(number), line) for number, line in enumerate(lines, 1) if line]
    if not entries:
        raise PipelineError(f"prompt file {path} is empty; write one prompt a line")
    return entries


def read_prompt_files(evaluation: Path, calibration: Path, real: str | None) -> Source:
    """Two files of prompts, and perhaps a folder of pictures, whatever their formats."""
    pictures = () if real is None else list_folder(Path(real), "dataset.real")
    return Source(read_prompts(evaluation), read_prompts(calibration), pictures)


def read_table(path: Path, root: Path | None, pictures: bool) -> Source:
    """A CSV or JSONL table: prompt (caption, text), file (file_name, image), perhaps split.

    Args:
        root: of `file`; None: the table's folder.
        pictures: whether every prompt needs one.
    """
    root = path.parent if root is None else root
    rows = _table_rows(path)
    unnamed = next((key for key, _, file, _ in rows if not file), None)
    if pictures and unnamed is not None:
        raise PipelineError(
            f"{unnamed} of table {path} names no picture ({', '.join(PICTURE_COLUMNS)}); add it, or for prompts "
            "alone set dataset.pictures=false, dataset.size=NUMBER of them to evaluate (unless a column split says so) "
            "and metric.metrics without fid_gt and kid_gt, for example [psnr,ssim]"
        )
    entries = [
        Entry(file or key, prompt, _below(root, file, key, path) if file else None) for key, prompt, file, _ in rows
    ]
    splits = [split for _, _, _, split in rows]
    if not any(splits):
        return Source(entries)
    wrong = next((split for split in splits if split not in SPLITS), None)
    if wrong is not None or None in splits:
        raise PipelineError(f"table {path} has a split {wrong!r}; every row's must be evaluation or calibration")
    by_split = {name: [entry for entry, split in zip(entries, splits, strict=True) if split == name] for name in SPLITS}
    return Source(by_split["evaluation"], by_split["calibration"])


def _below(root: Path, file: str, key: str, table: Path) -> Picture:
    """The picture that a row names; PipelineError unless it lies below `root`."""
    found = os.path.relpath(file, root) if file.startswith("/") else file
    if not stays_below(found):
        raise PipelineError(
            f"{key} of table {table} names the picture {one_line(file[:80])}, not below {root}; correct it, or "
            "set dataset.root to a folder that holds all of them"
        )
    return Picture(root / file)


def _table_rows(path: Path) -> list[tuple[str, str, str | None, str | None]]:
    kind = path.suffix.lower()
    text = read_text(path, "table", "" if kind == ".csv" else None)  # cells keep their line breaks
    if kind == ".csv":
        numbered: list[tuple[int, Any]] = _csv_rows(text, path)
    elif kind == ".jsonl":
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        numbered = [(number, parse_json(line, "table", path, number)) for number, line in lines]
    else:
        raise PipelineError(f"table {path} is neither .csv nor .jsonl; name it after what it is")
    if not numbered:
        raise PipelineError(f"table {path} has no rows; write one prompt a row")
    rows = []
    for number, row in numbered:
        place = f"line {number} of table {path}"
        if not isinstance(row, dict):
            raise PipelineError(f"{place} is no JSON object; write one object a line")
        prompt = _column(row, PROMPT_COLUMNS, place)
        if prompt is None:
            raise PipelineError(
                f"{place} has no prompt; it must have one of {', '.join(PROMPT_COLUMNS)} (columns "
                f"there: {', '.join(map(str, row))})"
            )
        rows.append((f"line {number}", prompt, _column(row, PICTURE_COLUMNS, place), _column(row, ("split",), place)))
    return rows


def _csv_rows(text: str, path: Path) -> list[tuple[int, dict[str, str | None]]]:
    """Rows with the number of their last line; strict about open quotes."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows, last = [], 0
    try:
        columns = reader.fieldnames or ()
        last = reader.line_num
        for row in reader:
            last = reader.line_num
            if None in row:
                raise PipelineError(
                    f"line {last} of table {path} has more cells than the first line ({', '.join(columns)}); "
                    'put quotes around text with commas: "a cat, sitting"'
                )
            rows.append((last, row))
    except csv.Error as error:
        raise PipelineError(
            f"table {path} cannot be read from line {last + 1} on ({one_line(error)}); correct the quotes there, or "
            "shorten the cell"
        ) from error
    return rows


def _column(row: Mapping[Any, Any], names: tuple[str, ...], place: str) -> str | None:
    """The first column that says something; PipelineError if it is no text."""
    for name in names:
        value = row.get(name)
        if value is None:
            continue
        if not _says(value):
            raise PipelineError(f"{place} has a {type(value).__name__} as its {name}; write text or a number there")
        if text := str(value).strip():
            return text
    return None


def _says(value: Any) -> bool:
    # 0 is a class label.
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)
