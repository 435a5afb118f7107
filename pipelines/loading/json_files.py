"""JSON files of a model's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from segquant_bench.pipelines.errors import PipelineError, one_line

_SHOWN = 60
"""Characters of a value in a sentence."""


def read_mapping(file: Path) -> dict[str, Any]:
    """PipelineError for what is no JSON, or no mapping in it."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise PipelineError(f"{file} is not readable JSON ({one_line(error)}); fetch the model again") from error
    if not isinstance(values, dict):
        raise PipelineError(f"{file} holds no settings, but {shown(values)}; fetch the model again")
    return values


def shown(value: Any) -> str:
    """A value of such a file, as it is written there, cut to a part of a line."""
    return one_line(json.dumps(value)[:_SHOWN])
