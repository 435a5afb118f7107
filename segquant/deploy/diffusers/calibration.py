"""Batches in a file: safetensors, whose metadata holds their structure and what is no tensor."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from segquant.checks import checked, described
from segquant.errors import QuantizationError, first_line
from segquant.files import write_whole
from segquant.serialize.manifest import NUMBERS

KEY = "segquant_batches"
"""Of the metadata."""


@checked()
def save_calibration(batches: Iterable[Any], path: str | Path) -> Path:
    """Write batches (argument tuples or keyword dicts of a model's forward); returns the path.

    Raises:
        QuantizationError: no batch, or an argument that is no tensor, number, string, None, list or dict of these.
    """
    tensors: dict[str, Tensor] = {}
    trees = [_tree(batch, f"batch {index}", tensors) for index, batch in enumerate(batches)]
    if not trees:
        raise QuantizationError("there are no batches to save; give argument tuples or keyword dicts of the forward")
    metadata = {KEY: json.dumps(trees)}
    write_whole(Path(path), lambda partial: save_file(tensors, partial, metadata))
    return Path(path)


@checked()
def load_calibration(path: str | Path) -> Iterator[Any]:
    """The batches of `save_calibration`, read one at a time.

    Raises:
        QuantizationError: the file is missing, damaged, or holds no batches.
    """
    file = Path(path)
    if not file.is_file():
        raise QuantizationError(
            f"the calibration file {file} is missing; write one by segquant.deploy.diffusers.save_calibration"
        )
    try:
        with safetensors.safe_open(file, "pt") as opened:
            trees = json.loads((opened.metadata() or {})[KEY], **NUMBERS)
            names = set(opened.keys())
    except KeyError as error:
        raise QuantizationError(
            f"{file} holds no calibration batches; write them by segquant.deploy.diffusers.save_calibration"
        ) from error
    except (safetensors.SafetensorError, ValueError, TypeError, RecursionError) as error:
        raise _damaged(file, error) from error
    if not isinstance(trees, list) or not trees:
        raise _damaged(file, ValueError("it holds no list of batches"))
    try:
        named = [name for tree in trees for name in _names(tree)]
    except RecursionError as error:
        raise _damaged(file, error) from error
    if sorted(named) != sorted(names):
        raise _damaged(file, ValueError("its batches do not name each of its tensors once"))
    return _batches(file, trees)


def _names(tree: Any) -> Iterator[str]:
    """The tensors of a batch, as far as it can be read."""
    if isinstance(tree, dict):
        for kind, entry in tree.items():
            if kind == "tensor" and isinstance(entry, str):
                yield entry
            elif kind in ("dict", "list", "tuple"):
                for part in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
                    yield from _names(part)


def _damaged(file: Path, error: Exception) -> QuantizationError:
    return QuantizationError(f"the calibration file {file} is damaged ({first_line(error)}); write it again")


def _batches(file: Path, trees: list[Any]) -> Iterator[Any]:
    with safetensors.safe_open(file, "pt") as opened:
        for tree in trees:
            try:
                if isinstance(tree, dict) and "value" in tree:
                    raise ValueError(f"a batch is {described(tree['value'])}")
                value = _value(tree, opened)
            except (safetensors.SafetensorError, ValueError, TypeError, AttributeError, RecursionError) as error:
                raise _damaged(file, error) from error
            yield value


def _tree(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for a value; its tensors are added under running numbers."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _tree(entry, f"{where}, {key}", tensors) for key, entry in value.items()}}
    if isinstance(value, (list, tuple)):
        entries = [_tree(entry, f"{where}, entry {index}", tensors) for index, entry in enumerate(value)]
        return {type(value).__name__ if type(value) in (list, tuple) else "tuple": entries}
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return {"value": value}
    what = value if isinstance(value, float) else f"a {type(value).__name__}"
    raise QuantizationError(
        f"{where}: {what} cannot be written to a calibration file; give tensors, finite numbers, "
        "strings, None, lists or dicts of these"
    )


def _value(tree: dict[str, Any], opened: Any) -> Any:
    ((kind, entry),) = tree.items()
    if kind == "tensor":
        found: torch.Tensor = opened.get_tensor(entry)
        return found
    if kind == "dict":
        return {key: _value(part, opened) for key, part in entry.items()}
    if kind in ("list", "tuple") and isinstance(entry, list):
        values = [_value(part, opened) for part in entry]
        return values if kind == "list" else tuple(values)
    if kind != "value" or isinstance(entry, (dict, list)):
        raise ValueError(f"a batch holds {described(entry)} as {described(kind)}")
    return entry
