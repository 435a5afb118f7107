"""The command line's arguments."""

from __future__ import annotations

import re
from collections.abc import Sequence

from segquant_bench.pipelines.errors import PipelineError

OPEN = (
    "quantizer.overrides", "components", "stages", "dataset.arguments", "precision.arguments",
    "model.scheduler_settings", "model.parts",
)  # fmt: skip
"""Keys whose value is a mapping with keys of the user's own."""
_KEY = re.compile(r"([^+~=][^=]*)=")
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


def quotes_hint(override: str) -> str:
    """How to write a mapping whose keys have quotes; empty for others."""
    if _QUOTED_KEY.search(override) is None:
        return ""
    key = override.partition("=")[0]
    return f"keys in braces stand without quotes: '{key}={{*.norm1.linear: {{precision: w8a8_dynamic}}}}'"
