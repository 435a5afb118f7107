"""Configuration directories of the user's own on a command line: `hydra.searchpath=[pkg://their_pkg.conf]`."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.runtime.own_code import add_working_folder

KEY = "hydra.searchpath"
_PLACES = re.compile(r"(pkg|file)://([^\],'\"]+)")


def check_search_path(arguments: Sequence[str]) -> None:
    """Let packages in the working folder be on the search path, and refuse places that are not there.

    Hydra would only warn, and then miss the options in them.

    Raises:
        PipelineError: no such package or directory.
    """
    for argument in arguments:
        if argument.lstrip("+").startswith(f"{KEY}="):
            for kind, place in _PLACES.findall(argument):
                add_working_folder()
                if not _is_there(kind, place.strip()):
                    raise PipelineError(
                        f"{KEY}: there is no {'package' if kind == 'pkg' else 'directory'} {place.strip()}; "
                        + (
                            "install it, or set PYTHONPATH to the folder that holds it"
                            if kind == "pkg"
                            else "correct it"
                        )
                    )


def _is_there(kind: str, place: str) -> bool:
    if kind == "file":
        return Path(place).is_dir()
    name, _, rest = place.partition("/")
    try:
        spec = importlib.util.find_spec(name)
    except ImportError:
        return False
    folders = spec.submodule_search_locations if spec is not None else None
    return any((Path(folder) / rest).is_dir() for folder in folders or ())
