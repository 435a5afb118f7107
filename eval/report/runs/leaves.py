from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from segquant_bench.eval.tables.numbers import short
from segquant_bench.texts import is_plain

UNSET = "unset"


def leaves(values: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value, lists and empty mappings whole."""
    if not isinstance(values, Mapping) or not values:
        return {prefix: values} if prefix else {}
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= leaves(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def is_within(key: str, places: Collection[str]) -> bool:
    """Whether a key is one of `places`, or below one."""
    return any(key == place or key.startswith(f"{place}.") for place in places)


def fewest(every: Sequence[Mapping[str, Any]], keys: Iterable[str], given: Sequence[str] = ()) -> list[str]:
    """`given` and few of the keys that tell apart whatever all keys do (greedily)."""
    order = list(dict.fromkeys([*given, *keys]))
    texts = [{key: shown(values.get(key), key in values) for key in order} for values in every]
    differing = [key for key in order if len({text[key] for text in texts}) > 1]

    def parts(chosen: Sequence[str]) -> int:
        return len({tuple(text[key] for key in chosen) for text in texts})

    whole, chosen = parts(differing), list(given)
    while parts(chosen) < whole:
        chosen.append(max(differing, key=lambda key: parts([*chosen, key])))
    return [key for key in order if key in chosen]


def told(values: Mapping[str, Any], keys: Sequence[str], every: Sequence[Mapping[str, Any]] = ()) -> str:
    """``guidance_scale=3.0 call.height=32``: the section only where needed, digits as far as `every` needs them."""
    ends = [key.partition(".")[2] or key for key in keys]
    names = [end if ends.count(end) == 1 else key for end, key in zip(ends, keys, strict=True)]
    return " ".join(f"{name}={_told(values, key, every)}" for name, key in zip(names, keys, strict=True))


def _told(values: Mapping[str, Any], key: str, every: Sequence[Mapping[str, Any]]) -> str:
    value = values.get(key)
    return short(value, [each.get(key) for each in every]) if isinstance(value, float) else shown(value, key in values)


def shown(value: Any, is_set: bool = True) -> str:
    """A value such that no two look alike."""
    if not is_set:
        return UNSET
    if isinstance(value, str) and is_plain(value) and " " not in value and value not in ("", UNSET):
        try:
            json.loads(value)
        except ValueError:
            return value
    return json.dumps(value, default=str)
