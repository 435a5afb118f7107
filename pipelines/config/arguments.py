"""The command line's arguments."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override

from segquant_bench.hints import nearest
from segquant_bench.pipelines.errors import PipelineError

OPEN = (
    "quantizer.overrides", "components", "stages", "dataset.arguments", "precision.arguments",
    "model.scheduler_settings", "model.parts",
)  # fmt: skip
"""Keys whose value is a mapping with keys of the user's own."""
EXPERIMENT = "experiment"
_KEY = re.compile(r"([^+~=][^=]*)=")
_VARIABLE = re.compile(r"\$\{oc\.env:\s*([^,\s{}]+)\s*\}")
_QUOTED_KEY = re.compile(r"""[{,]\s*(["'])[^"']*\1\s*:""")


def open_key(key: str) -> str | None:
    """Which of OPEN a key is or lies in, if any."""
    return next((known for known in OPEN if key == known or key.startswith(f"{known}.")), None)


def with_open_keys(arguments: Sequence[str]) -> list[str]:
    """Arguments in which mappings take new keys without "+", as Hydra alone would refuse.

    >>> with_open_keys(["stages={a: {b: 1}}", "seed=1"])
    ['++stages={a: {b: 1}}', 'seed=1']
    """
    found = []
    for argument in arguments:
        match = _KEY.match(argument)
        found.append(f"++{argument}" if match and open_key(match[1]) else argument)
    return found


def check_text(arguments: Sequence[str]) -> None:
    """PipelineError for an argument that is no UTF-8."""
    for argument in arguments:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise PipelineError(f"{argument} is no UTF-8; write it so, or rename what it names")


def check_environment(arguments: Sequence[str]) -> None:
    """PipelineError for an argument with ${oc.env:NAME}, without a default, of a variable that is not set.

    What refers to its key, as the folder of a run does, would be told of in its place.
    """
    for argument in arguments:
        missing = [name for name in _VARIABLE.findall(argument) if name not in os.environ]
        if missing:
            raise PipelineError(
                f"{argument}: the environment has no variable {missing[0]}; set it, or write "
                f"${{oc.env:{missing[0]},VALUE}} with a value for where it is not set"
            )


def quotes_hint(override: str) -> str:
    """How to write a mapping whose keys have quotes; empty for others."""
    if _QUOTED_KEY.search(override) is None:
        return ""
    key = override.partition("=")[0]
    return f"keys in braces stand without quotes: '{key}={{*.norm1.linear: {{precision: w8a8_dynamic}}}}'"


def check_overrides(arguments: Sequence[str], groups: Mapping[str, Collection[str]], *, sweeps: bool) -> None:
    """Refuse what Hydra would not say in a sentence.

    Args:
        groups: options by group.
        sweeps: whether several values of a key are several runs.

    Raises:
        PipelineError: no key, no option, several values, or none.
        HydraException: cannot be parsed.
    """
    for argument in arguments:
        if not argument.partition("=")[0].strip("+~ "):
            raise PipelineError(f"{argument!r} has no key; write KEY=VALUE")
        if "=" not in argument and not argument.startswith("~"):
            raise PipelineError(f"{argument!r} has no value; write KEY=VALUE, for example quantizer=rtn")
        (override,) = OverridesParser.create().parse_overrides([argument])
        if override.key_or_group in groups or "/" in override.key_or_group:
            _check_choice(override, argument, groups.get(override.key_or_group, ()))
        if override.is_sweep_override():
            _check_sweep(override, argument, groups, sweeps)


def _check_choice(override: Override, argument: str, options: Collection[str]) -> None:
    group = override.key_or_group
    if override.is_delete():
        if group == EXPERIMENT or not options:  # no run needs them
            return
        raise PipelineError(f"{argument} leaves a run without its {group}; choose another with {group}=NAME")
    given = None if override.is_sweep_override() else override.value()
    if isinstance(given, list) and not group.startswith("hydra/"):
        names = ",".join(str(name) for name in given) or "NAME"
        raise PipelineError(
            f"{argument} gives a list, and a run has one {group}; for a run each write -m {group}={names}"
        )
    if not all(isinstance(value, str) for value in _values(override)):
        known = f"known are {', '.join(sorted(options))}" if options else f"write {group}=NAME"
        raise PipelineError(f"{argument} names no option of the group {group}; {known}")


def _values(override: Override) -> list[Any]:
    if override.is_sweep_override():
        return [] if _glob(override) is not None or not override.is_discrete_sweep() else [*override.sweep_iterator()]
    value = override.value()
    return value if isinstance(value, list) else [value]


def _check_sweep(override: Override, argument: str, groups: Mapping[str, Collection[str]], sweeps: bool) -> None:
    key = override.key_or_group
    if not sweeps:
        values = argument.partition("=")[2]
        listed = "" if key in groups else f", or write '{key}=[{values}]' for a list, '{key}=\"{values}\"' for a text"
        raise PipelineError(f"{argument} names several values; add -m to run each of them{listed}")
    glob = _glob(override)
    if glob is not None and key in groups and not glob.filter(sorted(groups[key])):
        raise PipelineError(f"{argument} fits no option of the group {key}; {nearest(argument, groups[key])}")
    if glob is None and override.is_discrete_sweep() and not [*override.sweep_string_iterator()]:
        raise PipelineError(f"{argument} is a sweep over no value; give it at least one")


def _glob(override: Override) -> Glob | None:
    value: object = override._value
    return value if isinstance(value, Glob) else None
