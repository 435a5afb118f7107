"""Names that tables give to methods: none may be that of another one."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from segquant_bench.pipelines.errors import PipelineError, one_line
from segquant_bench.pipelines.runtime.own_code import TARGET, is_own
from segquant_bench.pipelines.runtime.paths import CONF, FAMILIES, ZOO

PRESETS = "segquant.presets"
SHIPPED = "emoji_sd3"
"""The model where none is named."""
PARTS_OF_NAMES, PARTS_OF_TITLES = "_.-", " _.-+"
"""Beside letters, their marks and digits of any script: of methods, which "+" and "@" join; of models and formats."""
LONGEST = 120
"""Characters of a name: several are put together to that of a folder, which has room for 255 bytes."""
NONE = "none"
_SHOWN = 60
CONTAINERS = ("skip", "overrides", "reconstruction")
"""Settings of quantizers that may be an empty list or mapping."""
PARTS = {
    "ptqd": ("correction", "method", "ptqd"),
    "tac": ("correction", "method", "tac"),
    "ptq4dm": ("calibration", "timesteps", "normal"),
}
"""Quantizers that are rounding to nearest with something else: section, key and value."""


def with_model_name(overrides: Sequence[str]) -> list[str]:
    """Arguments in which a pipeline of the user's own has the name of its folder, not that of the shipped one.

    >>> with_model_name(["model.path=/data/my-pipeline"])[-1]
    'model.name=my-pipeline'
    >>> with_model_name(["model=sd35_medium", "model.path=/data/sd35"])[-1]
    'model.path=/data/sd35'
    """
    given = dict(each.lstrip("+").partition("=")[::2] for each in overrides)
    place = (given.get("model.path") or given.get("model.repo") or "").strip("'\"")
    shipped = given.get("model", SHIPPED) in FAMILIES.values()
    several = any(letter in place for letter in "$,(")
    if (
        place in ("", "null")
        or not shipped
        or several
        or {"model.name", "experiment"} & given.keys()
        or _is_shipped(place)
    ):
        return list(overrides)
    name = re.sub(r"[^\w.-]+", "-", Path(place).name, flags=re.ASCII).strip("-.")
    return [*overrides, f"model.name={name}"] if name else list(overrides)


def _is_shipped(place: str) -> bool:
    return Path(place).resolve().parent == ZOO


def label_of(quantizer: Mapping[str, Any]) -> str:
    """A quantizer's `name`, else its function's."""
    return str(quantizer.get("name") or str(quantizer[TARGET]).rpartition(".")[2])


def check_name(key: str, name: str, others: str = PARTS_OF_NAMES) -> None:
    """PipelineError for a name that cannot be part of a folder's, is hidden, or would be taken for a flag."""
    if (
        not name
        or len(name) > LONGEST
        or name[0] in ".-"
        or name != name.strip()
        or not all(each in others or each.isalnum() or unicodedata.category(each).startswith("M") for each in name)
    ):
        shown = f"{one_line(name[:_SHOWN])!r}{'…' * (len(name) > _SHOWN)}"
        kinds = f"{'spaces ' * (' ' in others)}{' '.join(others.strip())}"
        raise PipelineError(
            f"{key}={shown} cannot name a folder; use letters, digits and {kinds} alone, no . - or space first, and at "
            f"most {LONGEST} characters"
        )


def check_title(key: str, name: str) -> None:
    """As `check_name`, of what may have spaces: "SD3.5 medium"."""
    check_name(key, name, PARTS_OF_TITLES)


def check_quantizer(quantizer: Mapping[str, Any]) -> None:
    """PipelineError for a quantizer that tables would call like another one of conf/quantizer, or like none."""
    name, target = label_of(quantizer), str(quantizer[TARGET])
    for key, value in quantizer.items():
        if value in ([], {}) and key not in CONTAINERS and not is_own(target):
            raise PipelineError(f"quantizer.{key}={value} holds nothing; give a value, or null for none")
    check_name("quantizer.name", name)
    if name.lower() == NONE and target != f"{PRESETS}.{NONE}":
        raise PipelineError(
            f"the quantizer {target} would be called none in tables, which is the unquantized model; choose "
            "quantizer=none, or another quantizer.name"
        )
    if target == f"{PRESETS}.{NONE}" and name != NONE:
        raise PipelineError(
            f"quantizer.name={name} is no name of the unquantized model ({target}), which tables call none; leave it "
            "out"
        )
    own = known().get(name.lower())
    if own is None or (own.items() <= {**quantizer, TARGET: target}.items() and not is_own(target)):
        return
    raise PipelineError(
        f"the quantizer {target} would be called {name} in tables, which is another one "
        f"({', '.join(map(str, own.values()))}); choose quantizer={name.lower()}, or another quantizer.name"
    )


def check_part(quantizer: Mapping[str, Any], sections: Mapping[str, Any]) -> None:
    """PipelineError for a quantizer that is named after a part which the run has not."""
    name = label_of(quantizer)
    if name not in PARTS or is_own(str(quantizer[TARGET])):
        return
    (part, key, wanted), function = PARTS[name], str(quantizer[TARGET]).rpartition(".")[2]
    found = sections[part]
    if found.name == wanted and getattr(found, key) == wanted:
        return
    told = f"{part} is {found.name}" if found.name != wanted else f"{part}.{key} is {getattr(found, key)}"
    raise PipelineError(
        f"quantizer={name} is {function} with {part}={wanted}, but {told}; choose quantizer={function} for that"
    )


def check_correction(name: str, method: str, methods: tuple[str, ...]) -> None:
    """PipelineError for a correction that tables would call like another one, or like none."""
    check_name("correction.name", name)
    named = name.lower() in methods and name != method
    if named or (method == NONE and name != NONE):
        raise PipelineError(
            f"correction.name={name} is not what correction.method={method} is called in tables; choose "
            f"correction={method}, or another correction.name"
        )


@cache
def known() -> dict[str, dict[str, Any]]:
    """By name of conf/quantizer: the function, and what sets it apart from another name of the same function."""
    files = {
        path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (CONF / "quantizer").glob("*.yaml")
    }
    return {name: _apart(name, files) for name in files}


def _apart(name: str, files: Mapping[str, Any]) -> dict[str, Any]:
    values = files[name]
    if TARGET in values:
        return {TARGET: values[TARGET]}
    (based,) = [each.partition("@")[0] for each in values["defaults"] if isinstance(each, str) and "@_here_" in each]
    own = {key: value for key, value in values.items() if key not in ("defaults", "name")}
    return {**_apart(based, files), **own}
