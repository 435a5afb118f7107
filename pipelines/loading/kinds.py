"""Settings of a component against the types that its class says; the class itself takes "x" for True."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.loading.json_files import shown

_KINDS: dict[type, str] = {bool: "true or false", int: "a number", float: "a number", str: "a text"}
_GROUPS: dict[type, str] = {list: "a list", tuple: "a list", dict: "a mapping"}


def check_kinds(kind: Any, file: Path, values: Mapping[str, Any]) -> None:
    """Refuse settings of another type than the class's; null is the class's own affair.

    Args:
        kind: a class of diffusers; what its annotations do not tell is let through.
        file: with the settings, for messages.

    Raises:
        PipelineError: with file and field.
    """
    hints = _hints(kind)
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        value = values.get(name)
        wanted = _wanted(hints.get(name, Any), parameter.default)
        if value is not None and wanted and _told(type(value)) not in wanted:
            raise PipelineError(
                f"{file} has {name} = {shown(value)}, which must be {' or '.join(sorted(wanted))} for {kind.__name__}; "
                "restore the file, or take another folder"
            )


def _hints(kind: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind.__init__)
    except (NameError, AttributeError, TypeError):  # annotations that only type checkers can read
        return {}


def _wanted(hint: Any, default: Any) -> set[str]:
    """Words for the types that are right; none: any. A default may be of another type than its annotation."""
    found = _of_hint(hint)
    if found is None or default is None or default is inspect.Parameter.empty:
        return found or set()
    return found | {_told(type(default))}


def _of_hint(hint: Any) -> set[str] | None:
    """None: it tells nothing."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        told = [_of_hint(part) for part in parts if part is not type(None)]
        return None if None in told else set().union(*(each for each in told if each))
    if typing.get_origin(hint) is typing.Literal:
        return {_told(type(part)) for part in parts}
    found = _told(typing.get_origin(hint) or hint)
    return {found} if found else None


def _told(kind: Any) -> str:
    return _KINDS.get(kind) or _GROUPS.get(kind) or ""
