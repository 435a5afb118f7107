"""Files of tokenizers and picture processors: emptied ones load as the class's own, with other numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segquant_bench.pipelines.errors import PipelineError, one_line
from segquant_bench.pipelines.loading.json_files import read_mapping, shown

TOLD = ("tokenizer_config.json", "special_tokens_map.json", "preprocessor_config.json", "vocab.json")
"""Mappings that say something in every model."""
MAPPINGS = ("added_tokens.json", "generation_config.json")
"""Mappings that may be empty."""
RESTORE = "restore the file, or take another folder"
_KEY = 60


def check_tokens(folder: Path) -> None:
    """Refuse such files where they are empty or of another type than the library writes.

    Raises:
        PipelineError: with file and field.
    """
    for file in filter(Path.is_file, (folder / name for name in (*TOLD, *MAPPINGS))):
        values = read_mapping(file)
        if not values and file.name in TOLD:
            raise PipelineError(f"{file} is empty, so others than the model's would be taken; {RESTORE}")
        for key, value in values.items():
            if (why := _wrong(file.name, key, value)) is not None:
                raise PipelineError(f"{file} has {one_line(key[:_KEY])} = {shown(value)}, {why}; {RESTORE}")
    if (folder / "vocab.json").is_file():
        _check_vocabulary(folder / "vocab.json")
    merges = folder / "merges.txt"
    if merges.is_file() and not merges.stat().st_size:
        raise PipelineError(f"{merges} is empty, so texts would be split otherwise; {RESTORE}")


def _wrong(name: str, key: str, value: Any) -> str | None:
    if name in ("vocab.json", "added_tokens.json"):
        return None if type(value) is int and value >= 0 else "which is no number of a token"
    if key == "model_max_length" and value is not None and not (type(value) is int and value > 0):
        return "which must be a whole number above 0"
    if name in TOLD[:2] and key.endswith("_token") and not key.startswith("add_"):
        content = value.get("content") if isinstance(value, Mapping) else value
        if value is not None and not (isinstance(content, str) and content):
            return "which is no token"
    return None


def _check_vocabulary(file: Path) -> None:
    numbers = sorted(read_mapping(file).values())
    if numbers != list(range(len(numbers))):
        raise PipelineError(f"{file} does not number its {len(numbers)} tokens from 0 on, each once; {RESTORE}")
