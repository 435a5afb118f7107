"""Keys that are true or false, on the command line and in files: OmegaConf alone takes 2, yes and on for true."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from segquant_bench.pipelines.errors import PipelineError, one_line

if TYPE_CHECKING:
    Flag = bool
    FlagOrNull = bool | None
else:
    Flag = FlagOrNull = Any  # what is given comes here as it is
_SHOWN = 60


def check_flags(section: Any, prefix: str) -> None:
    """Of a section's dataclass, whose fields of this kind are annotated `Flag` or `FlagOrNull`.

    Raises:
        PipelineError: with the key of the first value that is neither true nor false.
    """
    for name in flags(type(section)):
        value, key = getattr(section, name), f"{prefix}{name}"
        if not (isinstance(value, bool) or (value is None and kind_of(type(section), name) == "FlagOrNull")):
            told = "null" if value is None else one_line(str(value))[:_SHOWN]
            raise PipelineError(f"{key}={told} is neither true nor false; write {key}=true or {key}=false")


def flags(schema: type) -> tuple[str, ...]:
    """Names of these fields."""
    return tuple(item.name for item in fields(schema) if kind_of(schema, item.name) in ("Flag", "FlagOrNull"))


def kind_of(schema: type, name: str) -> str:
    """The annotation as it is written."""
    return next(str(item.type) for item in fields(schema) if item.name == name)
