"""Tables of benchmarks' rows, and the machine that they are of."""

from __future__ import annotations

import csv
import platform
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

import segquant

CPUINFO = Path("/proc/cpuinfo")
SHOWN = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


def machine() -> str:
    """The processor, its instruction sets, and versions, in a line."""
    lines = CPUINFO.read_text(encoding="utf-8").splitlines() if CPUINFO.is_file() else []
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    known = {key.strip(): value.strip() for key, value in values.items()}
    flags = known.get("flags", "").split()
    sets = ", ".join(name for name in SHOWN if name in flags) or "no instruction sets known"
    versions = f"torch {torch.__version__}, segquant {segquant.__version__}"
    return (
        f"{known.get('model name', platform.processor())} (family {known.get('cpu family', '?')}): {sets}; {versions}"
    )


def table(rows: Sequence[Any]) -> str:
    """Markdown of dataclasses of one kind; one at least."""
    names = [field.name for field in fields(rows[0])]
    texts = [isinstance(getattr(rows[0], name), str) for name in names]
    lines = ["| " + " | ".join(names) + " |", "|" + "".join("---|" if text else "---:|" for text in texts)]
    for row in rows:
        cells = [getattr(row, name) for name in names]
        lines.append(
            "| " + " | ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"
        )
    return "\n".join(lines) + "\n"


def write(folder: Path, name: str, text: str, rows: Sequence[Any]) -> None:
    """NAME.md with the text, NAME.csv with the rows (dataclasses of one kind)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        columns = [field.name for field in fields(rows[0])]
        writer.writerow(columns)
        writer.writerows([getattr(row, column) for column in columns] for row in rows)
