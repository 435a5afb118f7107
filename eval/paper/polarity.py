"""Signs of activations by kind of layer: Table 1 of arXiv 2507.14811."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from segquant_bench.eval.results import RunResult
from segquant_bench.eval.tables.table import Row, Table, heads, row

HEAD = heads(
    ("layers", "activation"),
    ("number", "channels", "rows", "mostly negative", "mostly positive", "negative values"),
)
NOTE = (
    "Inputs of the linears that the graph says an activation feeds, over the calibration inputs. A channel is mostly "
    "negative (positive) if more than half of its values are; shares are means over the layers of a kind."
)


def kind_of(layer: str) -> str:
    """The layer's name with block numbers as *: ``blocks.*.norm1.linear``."""
    return re.sub(r"\.\d+(?=\.)", ".*", layer)


def polarity_sheets(runs: Sequence[RunResult]) -> list[Table]:
    """One table per model and calibration inputs."""
    found: dict[tuple[str, ...], Table] = {}
    for run in runs:
        records = run.statistics.get("polarity")
        if records:
            key = (run.model, run.fingerprint, run.dataset, _stage_key(run))
            found.setdefault(key, Table(HEAD, (_rows(records),), title=f"Signs after activations: {_where(run)}"))
    return list(found.values())


def _stage_key(run: RunResult) -> str:
    # Older runs have the signs in "statistics".
    stage: dict[str, Any] = run.stages.get("polarity") or run.stages.get("statistics") or {}
    return str(stage.get("key", ""))


def _where(run: RunResult) -> str:
    calibration = run.config.get("calibration") or {}
    prompts = calibration.get("prompts")
    told = "" if prompts is None else f", {prompts} calibration prompts ({calibration.get('name')} steps)"
    return f"{run.model} on {run.dataset}{told}"


def _rows(records: dict[str, list[dict[str, Any]]]) -> tuple[Row, ...]:
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for layer, pieces in records.items():
        for piece in pieces:
            kinds.setdefault((kind_of(layer), piece["activation"]), []).append(piece)
    return tuple(
        row(
            kind,
            [
                str(len(pieces)),
                _range([piece["channels"] for piece in pieces]),
                _range([piece["rows"] for piece in pieces]),
                *(_share(pieces, key) for key in ("mostly_negative", "mostly_positive", "negative")),
            ],
        )
        for kind, pieces in kinds.items()
    )


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}–{high}"


def _share(pieces: Sequence[dict[str, Any]], key: str) -> str:
    return f"{sum(piece[key] for piece in pieces) / len(pieces):.3f}"
