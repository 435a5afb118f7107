"""Values that no key of a configuration can have."""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, StringNode

from segquant_bench.pipelines.errors import PipelineError, one_line

LARGEST = 2**63
"""Of whole numbers: what torch, numpy and JSON's readers all take is below."""
SEED = "seed"
"""Keys of this name are seeds, of which numpy takes no negative ones."""
TEXTS = ("negative_prompt",)
"""Last parts of keys whose texts may be empty."""
OWN = ("quantizer", "components", "stages", "arguments", "scheduler_settings")
"""Parts of keys below which values are those of somebody's function, which looks at them itself."""
FILES = ("path", "root", "table", "archive", "evaluation_prompts", "calibration_prompts", "real", "inception",
         "clip_path", "cache")  # fmt: skip
"""Last parts of keys that name files or folders."""
REPO = "repo"
NAME = "name"
_ADDRESS = re.compile(r"[A-Za-z][\w+.-]+:/")
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_SHOWN = 60


def check_values(config: DictConfig) -> None:
    """Refuse numbers that are none, whole numbers beyond 64 bits, negative seeds, and text that no file name can hold.

    Raises:
        PipelineError: with the key of the first one.
    """
    for key, value in _leaves(OmegaConf.to_container(config, resolve=True, throw_on_missing=False), ""):
        if (why := _wrong(key, value)) is not None:
            shown = one_line(repr(value))
            raise PipelineError(f"{key}={shown[:_SHOWN]}{'…' * (len(shown) > _SHOWN)} {why}")


def check_references(config: DictConfig, prefix: str = "") -> None:
    """Refuse a reference to another type in the place of a list, a mapping or a section's name.

    The schema lets these through.
    """
    for key in map(str, config):
        node = config._get_node(key)
        if key == NAME and prefix:
            _check_named(config, f"{prefix}{key}", node)
        if not isinstance(node, ListConfig | DictConfig) or node._is_missing():
            continue
        if node._is_interpolation():
            found = config[key]
            if found is not None and not isinstance(found, type(node)):
                what = "list" if isinstance(node, ListConfig) else "mapping"
                shown = one_line(repr(found))[:_SHOWN]
                raise PipelineError(f"{prefix}{key} refers to {shown}, which is no {what}; give one")
        elif isinstance(node, DictConfig) and not node._is_none():
            check_references(node, f"{prefix}{key}.")


def _check_named(config: DictConfig, key: str, node: Any) -> None:
    """A number would become a name that says nothing of what it names."""
    match = _REFERENCE.fullmatch(str(node._value())) if isinstance(node, StringNode) else None
    if match is None:
        return
    found = OmegaConf.select(config._get_root(), match[1])
    if found is not None and not isinstance(found, str):
        raise PipelineError(f"{key} refers to {match[1]}={one_line(repr(found))[:_SHOWN]}, which is no name; give one")


def check_empty(config: DictConfig) -> None:
    """Refuse empty texts, which some keys would take for null and others for a folder.

    Raises:
        PipelineError: with the key of the first one.
    """
    for key, value in _leaves(OmegaConf.to_container(config, resolve=True, throw_on_missing=False), ""):
        parts = key.split(".")
        if isinstance(value, str) and not value.strip() and parts[-1] not in TEXTS and not set(parts[:-1]) & {*OWN}:
            raise PipelineError(f"{key} is empty; give it a value, for example a name, or leave {key}= out")


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield f"{key or 'a'} key", name
            yield from _leaves(each, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _leaves(each, f"{key}[{index}]")
    else:
        yield key, value


def _is_device(text: str) -> bool:
    """Whether it is the path of something that reading would not end of: a device, a pipe, a socket."""
    if "/" not in text:
        return False
    try:
        mode = os.stat(text).st_mode
    except (OSError, ValueError):  # nothing is there, or it can be no path
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _wrong(key: str, value: Any) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return "is no finite number; give one"
    if isinstance(value, int) and abs(value) >= LARGEST:
        return "does not fit in 64 bits; give a smaller number"
    if isinstance(value, int) and key.rpartition(".")[2] == SEED and value < 0:
        return "is a negative seed, which numpy refuses; give one of at least 0"
    if isinstance(value, str) and _ADDRESS.match(value):
        if key.rpartition(".")[2] in FILES and not set(key.split(".")[:-1]) & {*OWN}:
            return "is an address, and only local files are read; download it, and give its path"
        if key.rpartition(".")[2] == REPO:
            return "is an address; give a repository of the hub as OWNER/NAME"
    if isinstance(value, str) and _is_device(value):
        return "is neither a file nor a folder, but a device or a pipe; give a file or a folder"
    if isinstance(value, str) and any(each == "\0" or "\ud800" <= each <= "\udfff" for each in value):
        return "holds a character that no file and no name can; take it out"
    return None
