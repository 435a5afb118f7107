"""The user's configuration directories: `hydra.searchpath=[pkg://their_pkg.conf]`."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.runtime.own_code import add_working_folder

KEY = "hydra.searchpath"
_PLACES = re.compile(r"(pkg|file)://([^\],'\"]+)")


def check_search_path(arguments: Sequence[str]) -> list[Path]:
    """Allow packages of the working folder; returns the added directories.

    Raises:
        PipelineError: no such package or directory.
    """
    found: list[Path] = []
    for argument in arguments:
        if argument.lstrip("+").startswith(f"{KEY}="):
            add_working_folder()
            found += [_folder(kind, place.strip()) for kind, place in _PLACES.findall(argument)]
    return found


def _folder(kind: str, place: str) -> Path:
    if kind == "file":
        if Path(place).is_dir():
            return Path(place)
        raise PipelineError(f"{KEY}: there is no directory {place}; correct it")
    name, _, rest = place.partition("/")
    try:
        spec = importlib.util.find_spec(name)
    except ImportError:  # of the package above
        spec = None
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (Path(folder) / rest).is_dir():
            return Path(folder) / rest
    raise PipelineError(
        f"{KEY}: there is no package {place}; install it, or set PYTHONPATH to the folder that holds it"
    )
