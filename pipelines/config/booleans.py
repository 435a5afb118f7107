"""Keys that are true or false: OmegaConf alone takes 2, yes and on for true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import is_dataclass
from functools import cache
from typing import Any, get_args, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser

from segquant_bench.pipelines.config.arguments import values_of
from segquant_bench.pipelines.errors import PipelineError


def check_booleans(arguments: Sequence[str]) -> None:
    """Refuse other values of such keys, as quantizers do of theirs.

    Raises:
        PipelineError: with the first argument.
    """
    for argument in arguments:
        key = argument.partition("=")[0].lstrip("+")
        if "=" not in argument or key not in boolean_keys():
            continue
        (override,) = OverridesParser.create().parse_overrides([argument])
        for value in values_of(override):
            refers = isinstance(value, str) and value.startswith("${")
            if not refers and isinstance(value, str | int | float) and not isinstance(value, bool):
                raise PipelineError(f"{argument} is neither true nor false; write {key}=true or {key}=false")


@cache
def boolean_keys() -> frozenset[str]:
    """Of the schema of a run."""
    from segquant_bench.pipelines.config.schema import RunConfig  # imports what imports this module's neighbours

    return frozenset(_keys(RunConfig, ""))


def _keys(schema: Any, prefix: str) -> list[str]:
    found: list[str] = []
    for name, hint in get_type_hints(schema).items():
        if hint is bool or bool in get_args(hint):
            found.append(f"{prefix}{name}")
        for each in (hint, *get_args(hint)):
            if is_dataclass(each) and not str(hint).startswith("dict"):
                found += _keys(each, f"{prefix}{name}.")
    return found
