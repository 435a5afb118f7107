"""Types of what a manifest says of the method, which loading does not read and `read_outcome` does."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Any

from segquant.checks import fits
from segquant.graph.segments import Segments
from segquant.method.plan_file import LayerPlan
from segquant.method.spec import Method
from segquant.numerics.formats import QuantScheme

Wrong = Iterator[tuple[str, Any]]
"""Places and what is there. Keys that are absent are right, as older files lack some, and so are unknown ones."""


def wrong_fields(manifest: Mapping[str, Any]) -> Wrong:
    """Of the whole outcome; parts that are registered under a name are looked at no further."""
    method = manifest.get("method", {})
    if "version" in method:
        yield from _wrong({"method.version": method["version"]}, {"method.version": int}, "")
        yield from _wrong(method, typing.get_type_hints(Method), "method.")
    else:  # the first version's settings are flat
        yield from _wrong(method, {"name": str, "scheme": QuantScheme}, "method.")
    for layer, entry in manifest.get("segments", {}).items():
        yield from _wrong(entry, typing.get_type_hints(Segments), f"segments.{layer}.")
    for index, entry in enumerate(manifest.get("plan", ())):
        yield from _wrong(entry, typing.get_type_hints(LayerPlan), f"plan[{index}].")


def _wrong(values: Mapping[str, Any], hints: Mapping[str, Any], place: str) -> Wrong:
    for key, hint in hints.items():
        if key in values:
            yield from _wrong_value(values[key], hint, place + key)


def _wrong_value(value: Any, hint: Any, place: str) -> Wrong:
    kinds = typing.get_args(hint) if NoneType in typing.get_args(hint) else (hint,)
    own = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
    is_part = any(getattr(kind, "_is_protocol", False) for kind in kinds)
    if value is None and NoneType in kinds:
        return
    if not (own or is_part):
        if not fits(value, hint):
            yield place, value
    elif not isinstance(value, Mapping):
        yield place, value
    elif own:
        yield from _wrong(value, typing.get_type_hints(own), f"{place}.")
    elif not isinstance(value.get("name"), str):
        yield f"{place}.name", value.get("name")
