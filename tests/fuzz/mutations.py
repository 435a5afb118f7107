"""Damage to files, drawn from a seed: JSON values, safetensors headers, tables, and bytes of any file."""

from __future__ import annotations

import copy
import json
import math
import random
import re
from pathlib import Path
from typing import Any

DEEP = "@deep@"
OUTSIDE = "outside"
"""The folder beside the one that is read; nothing in it may be opened."""
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 2.5, -0.0, 7, 10**6, 10**9, 2**31, 2**63, -(2**63) - 1, 10**30, 10**400, 1e99,
    1e308, math.nan, math.inf, -math.inf, 5e-324, "", "x", "x" * 10_000, "../../x", "a/b", "\0", "\ud800", "猫", "=1+1",
    "F8_E4M3", "BF16", "I64", "float64", "cuda", "somebody/repo", "os.system", [], {}, [[]], [None], [-1], [10**9],
    [10**12, 10**12], [1, "x"], ["x"] * 50, {"": None}, {"x": {}}, {"_target_": "os.system"}, DEEP,
)  # fmt: skip
"""What is put in the place of a value."""


def paths_outside(folder: Path) -> tuple[str, ...]:
    """Names that lead out of a folder, to what is there beside it."""
    names = ("secret.json", "secret.safetensors", "secret.png", "secret.pt")
    beside = folder.parent / OUTSIDE
    return (
        *(f"../{OUTSIDE}/{name}" for name in names),
        *(str(beside / name) for name in names),
        f"../{OUTSIDE}",
        str(beside),
    )


def mutated(draw: random.Random, path: Path, whole: bytes) -> bytes:
    """A damaged content of a file, by its kind; a third of the time damaged as bytes."""
    kind = path.suffix
    if draw.random() < 0.3:
        return mutated_bytes(draw, whole)
    if kind == ".json":
        return dumped(draw, changed(draw, json.loads(whole), path.parent))
    if kind == ".safetensors":
        return _header_changed(draw, whole, path.parent)
    if kind in (".csv", ".txt", ".yaml", ".jsonl"):
        return _lines_changed(draw, whole, path.parent)
    return mutated_bytes(draw, whole)


def mutated_bytes(draw: random.Random, whole: bytes) -> bytes:
    """Cut, flipped, doubled, filled or replaced."""
    at, length = draw.randrange(len(whole) + 1), draw.choice((1, 2, 8, 64, 1024))
    some = draw.choice((b"\0", b"\xff", b"\xef\xbb\xbf", b"[", b"{", b'"', b"\n", b"9" * 5000, b"&a *a", b"\x1f\x8b"))
    return draw.choice(
        (
            whole[:at],
            whole[:at] + whole[at + length :],
            whole[:at] + some * draw.choice((1, length)) + whole[at:],
            whole[:at]
            + bytes(byte ^ 1 << draw.randrange(8) for byte in whole[at : at + length])
            + whole[at + length :],
            whole[:at] + whole[max(0, at - length) :],
            whole[:at] + bytes(min(length, len(whole) - at)) + whole[at + length :],
            draw.choice((b"", b"null", b"[]", b"{}", b"\xff\xfe", some)),
            whole.decode("latin-1").encode("utf-16"),
        )
    )


def changed(draw: random.Random, value: Any, folder: Path) -> Any:
    """One to three places of a JSON value with something else in them."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        value = _changed_once(draw, value, folder)
    return value


def _changed_once(draw: random.Random, value: Any, folder: Path) -> Any:
    holders = list(_holders(value))
    if not holders or draw.random() < 0.02:
        return _odd(draw, value, folder)
    holder = draw.choice(holders)
    keys: list[Any] = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    key, way = draw.choice(keys), draw.random()
    if way < 0.2:
        del holder[key]
    elif way < 0.3 and isinstance(holder, dict):
        holder[draw.choice((f"{key}x", "", "\ud800", "__proto__", *map(str, paths_outside(folder))))] = holder.pop(key)
    elif way < 0.4:
        other = draw.choice(keys)
        holder[key], holder[other] = holder[other], holder[key]
    elif way < 0.45 and isinstance(holder, list):
        holder += [copy.deepcopy(holder[key])] * draw.choice((1, 3, 1000))
    else:
        holder[key] = _odd(draw, holder[key], folder)
    return value


def _odd(draw: random.Random, value: Any, folder: Path) -> Any:
    """Something else, often of the same type."""
    way = draw.random()
    if way < 0.25 and isinstance(value, str):
        return draw.choice((*paths_outside(folder), value + "x", value[:-1], value * 50, value.upper(), "\0" + value))
    if way < 0.4 and isinstance(value, int | float) and not isinstance(value, bool):
        return draw.choice((-value, value + 1, value * 10, value * 10**6, -value * 10**6, str(value)[:50], [value]))
    return copy.deepcopy(draw.choice(ODD))


def _holders(value: Any) -> Any:
    if isinstance(value, dict | list) and value:
        yield value
        for each in value.values() if isinstance(value, dict) else value:
            yield from _holders(each)


def dumped(draw: random.Random, value: Any) -> bytes:
    """As JSON; deep nesting is written out, and now and then a key stands twice."""
    text = json.dumps(value)
    if DEEP in text:
        levels, one = draw.choice((90, 2000, 100_000)), draw.choice(("[", '{"a":'))
        closing = {"[": "]", '{"a":': "}"}[one]
        inner = one * levels + ("1" if one != "[" else "") + closing * draw.choice((levels, levels, 0))
        text = text.replace(json.dumps(DEEP), inner)
    keys = re.findall(r'"[^"\\]*": ', text[:5000])
    if keys and draw.random() < 0.1:
        brace = draw.choice([match.start() for match in re.finditer(r"\{(?!\})", text)][:200] or [0])
        text = f"{text[: brace + 1]}{draw.choice(keys)}{json.dumps(draw.choice(ODD[:40]))}, {text[brace + 1 :]}"
    return text.encode("utf-8")


def _header_changed(draw: random.Random, whole: bytes, folder: Path) -> bytes:
    """safetensors with another header: its length right, as before, or huge."""
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    for key, text in (header.get("__metadata__") or {}).items():
        if text[:1] in "[{" and draw.random() < 0.5:
            header["__metadata__"][key] = dumped(draw, changed(draw, json.loads(text), folder)).decode()
            text = json.dumps(header, ensure_ascii=True).encode()
            return len(text).to_bytes(8, "little") + text + whole[8 + length :]
    text = dumped(draw, changed(draw, header, folder))
    told = draw.choice((len(text),) * 6 + (length, 2**63, 10**8, 0))
    return told.to_bytes(8, "little") + text + whole[8 + length :]


def _lines_changed(draw: random.Random, whole: bytes, folder: Path) -> bytes:
    """A table or list with a line or a cell changed."""
    lines = whole.decode().split("\n")
    at = draw.randrange(len(lines))
    try:
        row = json.loads(lines[at])
    except ValueError:
        cells = re.split(r"([,:])", lines[at])
        place = draw.randrange(0, len(cells), 2)
        odd = ("", '"', "'", '"x', "a,b", "\0", "\ud800", "{", "[", "&a [*a]", "!!python/object/apply:os.system [id]",
               "x" * 200_000, "\r", "\x0c", "=1+1", "~", "1e400", "- ", "<<: *a", *paths_outside(folder))  # fmt: skip
        cells[place] = draw.choice(odd)
        lines[at] = "".join(cells)
    else:
        lines[at] = dumped(draw, changed(draw, row, folder)).decode()
    if draw.random() < 0.2:
        lines.insert(at, draw.choice(lines))
    return "\n".join(lines).encode("utf-8", "surrogatepass")
