"""Settings of a model's components (config.json, scheduler_config.json …): refused, or named where loading fails."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from segquant.modules.bounded import TooLarge
from segquant_bench.pipelines.errors import PipelineError, one_line
from segquant_bench.pipelines.loading.json_files import read_mapping, shown
from segquant_bench.pipelines.loading.token_files import check_tokens

CONFIGS = ("config.json", "scheduler_config.json")
LARGEST = 1 << 26
"""Of whole numbers: no size, count or position of a model is larger (vocabularies of 20 million exist)."""
COUNTS = frozenset(
    ("attention_head_dim", "hidden_size", "norm_num_groups", "num_attention_heads", "num_train_timesteps", "patch_size")
)
"""Whole numbers by which others are divided."""
WIDTHS = COUNTS - {"num_train_timesteps"}
"""Those of them that are no larger than a tensor's size."""
NAMES = ("_class_name", "architectures", "model_type")
"""Of which every component's settings have one: without, a class has its own settings, which are no model's."""
RESTORE = "restore the file, or take another folder"
_TOLD = 200
_ADVICE = ". If you want to instead overwrite"
"""Of diffusers, for whoever writes a script."""


def check_settings(folder: Path, class_name: str | None = None) -> None:
    """Refuse a component's numbers with which it would be built for ever, in all memory, or not at all.

    Args:
        class_name: what the pipeline's index says that the component is.

    Raises:
        PipelineError: with file and field; or the file is no mapping in JSON, names no class, or one that is neither
            diffusers' nor the index's.
    """
    check_tokens(folder)
    for file in filter(Path.is_file, (folder / name for name in CONFIGS)):
        values = read_mapping(file)
        if not any(name in values for name in NAMES):
            what = "is empty" if not values else f"names no class ({NAMES[0]})"
            raise PipelineError(f"{file} {what}, so other settings than the model's would be taken; {RESTORE}")
        told = values.get(NAMES[0], class_name)
        if class_name is not None and told != class_name and not _is_class(told):
            raise PipelineError(
                f"{file} has {NAMES[0]} = {shown(told)}, which diffusers does not have, and the pipeline's index says "
                f"{class_name}: the settings are another's; {RESTORE}"
            )
        for place, key, value in _leaves(values):
            if (why := _wrong(place, key, value)) is not None:
                raise PipelineError(f"{file} has {place} = {shown(value)}, {why}; {RESTORE}")


def _is_class(name: Any) -> bool:
    import diffusers  # put off: slow, and hardly ever needed

    return isinstance(name, str) and hasattr(diffusers, name)


def check_widths(folder: Path, largest: int) -> None:
    """Refuse widths above the `largest` size of the component's tensors, of which tables would be made first.

    Raises:
        PipelineError: with file and field.
    """
    file = folder / CONFIGS[0]
    for place, key, value in _leaves(read_mapping(file)) if largest and file.is_file() else ():
        if key in WIDTHS and _is_size(key, value) and value > largest:
            raise PipelineError(
                f"{file} has {place} = {value}, more than any size of its tensors, of which {largest} is the largest; "
                f"{RESTORE}"
            )


def load_failure(kind: type, folder: Path, error: Exception) -> str:
    """What to say of a component that its class cannot load: the file, and the field where one is odd."""
    told = one_line(error).partition(_ADVICE)[0][:_TOLD] or type(error).__name__
    file = next((folder / name for name in CONFIGS if (folder / name).is_file()), None)
    if file is not None:
        odd = _odd(kind, read_mapping(file)) or (_most(file)[1] if isinstance(error, TooLarge) else "")
        return f"diffusers cannot load {file}{f', whose {odd}' if odd else ''}: {told}; {RESTORE}"
    empty = sorted(each.name for each in folder.glob("*.json") if each.read_bytes().split() in ([], [b"{}"]))
    files = f"{' and '.join(empty)} {'is' if len(empty) == 1 else 'are'} empty" if empty else "a file of it is damaged"
    return f"{kind.__name__} cannot be loaded from {folder} ({told}): {files}; restore it, or take another folder"


def largest_setting(folder: Path, least: int) -> str:
    """ "; or FILE is damaged: …" where a whole number is larger than `least`, which would take the memory; else ""."""
    for file in filter(Path.is_file, (folder / name for name in CONFIGS)):
        value, told = _most(file)
        if value > least:
            return f"; or {file} is damaged, whose {told}"
    return ""


def _most(file: Path) -> tuple[int, str]:
    """The largest size that a file asks for, and its field."""
    sizes = [
        (value, f"{place} is {value}") for place, key, value in _leaves(read_mapping(file)) if _is_size(key, value)
    ]
    return max(sizes, default=(0, ""))


def _leaves(values: Any) -> Iterator[tuple[str, str, Any]]:
    """Every place, the last key of it, and what is there; without recursion, as files may be deep."""
    left = [("", "", values)]
    while left:
        place, key, value = left.pop()
        if isinstance(value, dict):
            left += [(f"{place}.{name}" if place else name, name, each) for name, each in value.items()]
        elif isinstance(value, list):
            left += [(f"{place}[{index}]", key, each) for index, each in enumerate(value)]
        else:
            yield place, key, value


def _wrong(place: str, key: str, value: Any) -> str | None:
    if _is_size(key, value) and abs(value) > LARGEST:
        return f"more than the {LARGEST:,} that any model has"
    if key in COUNTS and value is not None and not (_is_number(value) and value > 0):
        return "which must be a number above 0"
    if key in COUNTS and isinstance(value, float) and not value.is_integer():
        return "which must be a whole number"
    if place == "scaling_factor" and not (_is_number(value) and 0 < value < math.inf):
        return "which must be a number above 0"
    if key.split("_")[-1] in ("eps", "epsilon") and not (_is_number(value) and 0 <= value < math.inf):
        return "which must be a number of at least 0"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_size(key: str, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and not key.endswith("theta")  # a base of angles


def _odd(kind: type, values: Mapping[str, Any]) -> str:
    """The first setting that is no number, or none above 0, where the class has such a one by itself; "" without."""
    maker = getattr(kind, "config_class", None) or kind
    for name, parameter in inspect.signature(maker).parameters.items():
        default: Any = parameter.default
        value: Any = values.get(name)
        if name not in values or not _is_number(default) or isinstance(value, dict | list):
            continue
        if not _is_number(value) or (default > 0 and value <= 0):
            return f"{name} is {shown(value)}"
    return ""
