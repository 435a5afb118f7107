"""The user's configuration directories: `hydra.searchpath=[pkg://their_pkg.conf]`, `--config-dir DIRECTORY`."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from segquant_bench.hidden import visible
from segquant_bench.pipelines.config.help import QUESTIONS
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.runtime.own_code import add_working_folder
from segquant_bench.pipelines.runtime.paths import CONF

KEY = "hydra.searchpath"
FLAGS = ("--config-dir", "-cd")
_PLACES = re.compile(r"(pkg|file)://([^\],'\"]+)")


def check_search_path(arguments: Sequence[str]) -> list[Path]:
    """Allow packages of the working folder; returns the directories of `hydra.searchpath`.

    Raises:
        PipelineError: no such package or directory, or two configurations of one name.
    """
    found: list[Path] = []
    for argument in arguments:
        if argument.lstrip("+").startswith(f"{KEY}="):
            add_working_folder()
            found += [_folder(kind, place.strip()) for kind, place in _PLACES.findall(argument)]
    _check_apart([*found, *flagged(arguments)])
    return found


def options(folders: Sequence[Path]) -> dict[str, set[str]]:
    """By group that every run has a choice of: its options, also those in `folders`."""
    return {
        group: {path.stem for folder in (CONF, *folders) for path in visible((folder / group).glob("*.yaml"), folder)}
        for group in QUESTIONS
    }


def flagged(arguments: Sequence[str]) -> Iterator[Path]:
    """The directories of --config-dir."""
    for argument, following in pairwise([*arguments, ""]):
        flag, equals, value = argument.partition("=")
        if flag in FLAGS:
            yield Path(value if equals else following)


def _check_apart(folders: Sequence[Path]) -> None:
    # Hydra silently reads the first configuration of a name, ours before the user's.
    seen: dict[Path, Path] = {}
    for folder in dict.fromkeys(each.resolve() for each in folders if each.is_dir()):
        for path in visible(folder.rglob("*.yaml"), folder):
            name = path.relative_to(folder)
            ours = CONF / name
            if ours.is_file() and ours.read_bytes() != path.read_bytes():
                raise PipelineError(
                    f"{path} has the name of a configuration of the benchmark, which would be read in its place; "
                    f"rename it, for example {name.with_stem(f'my_{name.stem}')}"
                )
            if name in seen and seen[name].read_bytes() != path.read_bytes():
                raise PipelineError(
                    f"{seen[name]} and {path} have one name, and only one of them would be read; rename one"
                )
            seen.setdefault(name, path)


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
