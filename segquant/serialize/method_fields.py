"""What a manifest says of the method, which loading does not need and `read_outcome` reads; and of layouts."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterator, Mapping
from types import NoneType
from typing import Any

from segquant import registry
from segquant.checks import fits
from segquant.errors import UnknownHereError
from segquant.graph.segments import Segments
from segquant.method.flat import CUTS, MEMBERS, OWN, TARGETS, settings
from segquant.method.parts import Cuts, Targets
from segquant.method.plan_file import LayerPlan
from segquant.method.spec import Method
from segquant.numerics.formats import QuantScheme
from segquant.numerics.layout import Layout
from segquant.quantize.outcome import Outcome

DAMAGE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)
"""What code raises that is given values which it never wrote."""
Wrong = Iterator[tuple[str, Any]]
"""Places and what is there. Keys that are absent are right, as older files lack some, and so are unknown ones."""
_FIXED = {"scheme", "precision", "deploy"}
"""Flat names that are judged elsewhere, or where they are used."""
_hints: Callable[[Any], dict[str, Any]] = functools.cache(typing.get_type_hints)


def wrong_fields(manifest: Mapping[str, Any]) -> Wrong:
    """Of the whole outcome; parts that are not registered here are looked at no further than for their name."""
    method = manifest.get("method", {})
    if "version" in method:
        yield from _wrong({"method.version": method["version"]}, {"method.version": int}, "")
        wrong = list(_wrong(method, _hints(Method), "method."))
        yield from wrong
        if not wrong:
            yield from _wrong_settings(method.get("spare", {}), "method.spare.")
            yield from _wrong_overrides(method.get("targets", {}), "method.targets.")
    else:  # the first version's settings are flat
        yield from _wrong(method, {"name": str, "scheme": QuantScheme}, "method.")
        wrong = list(_wrong_settings(method, "method."))
        yield from wrong or _wrong_overrides(method, "method.")
    for layer, entry in manifest.get("segments", {}).items():
        yield from _wrong(entry, _hints(Segments), f"segments.{layer}.")
    for index, entry in enumerate(manifest.get("plan", ())):
        wrong = list(_wrong(entry, _hints(LayerPlan), f"plan[{index}]."))
        yield from wrong or _wrong_settings(entry.get("choice", {}), f"plan[{index}].choice.")


def wrong_layout(layout: Mapping[str, Any], place: str) -> Wrong:
    """Of a layer, without its transforms' own fields."""
    yield from _wrong(layout, {**_hints(Layout), "transforms": tuple[Mapping[str, Any], ...]}, place)


def unreadable(manifest: Mapping[str, Any]) -> Iterator[tuple[str, Exception]]:
    """Places of the outcome whose values are of their types and yet none that there are, and what reading them raises.

    What is not known here is right, as in `wrong_fields`.
    """
    readers: dict[str, Callable[[], Any]] = {}
    if "method" in manifest:
        readers["method"] = lambda: Method.from_dict(manifest["method"])
        readers["passes"] = lambda: Outcome(Method.of("any", "w8a8"), passes=manifest.get("passes", 0))
    for layer, entry in manifest.get("segments", {}).items():
        readers[f"segments.{layer}"] = functools.partial(_made, Segments, entry)
    for index, entry in enumerate(manifest.get("plan", ())):
        readers[f"plan[{index}]"] = functools.partial(_made, LayerPlan, entry)
    for place, read in readers.items():
        try:
            read()
        except UnknownHereError:
            continue
        except DAMAGE as error:
            yield place, error


def _made(kind: Any, values: Mapping[str, Any]) -> Any:
    return kind(**{key: value for key, value in values.items() if key in _hints(kind)})


def _wrong(values: Mapping[str, Any], hints: Mapping[str, Any], place: str) -> Wrong:
    for key, hint in hints.items():
        if key in values:
            yield from _wrong_value(values[key], hint, place + key)


def _wrong_value(value: Any, hint: Any, place: str) -> Wrong:
    kinds = typing.get_args(hint) if NoneType in typing.get_args(hint) else (hint,)
    own = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
    part: Any = next((kind for kind in kinds if getattr(kind, "_is_protocol", False)), None)
    if value is None and NoneType in kinds:
        return
    if not (own or part):
        if not fits(value, hint):
            yield place, value
    elif not isinstance(value, Mapping):
        yield place, value
    elif own:
        yield from _wrong(value, _hints(own), f"{place}.")
    elif not isinstance(value.get("name"), str):
        yield f"{place}.name", value.get("name")
    else:
        yield from _wrong_part(value, registry.table(part.slot).get(value["name"]), f"{place}.")


def _wrong_part(values: Mapping[str, Any], kind: Any, place: str) -> Wrong:
    for key, field in registry.fields_of(kind).items() if kind is not None else ():
        if key in values and not _is_default(values[key], field):
            yield from _wrong_value(values[key], _hint(kind, key), place + key)


def _is_default(value: Any, field: dataclasses.Field[Any]) -> bool:
    """A part may be anybody's, and its default of any type."""
    default = registry.default_of(field)
    return type(value) is type(default) and bool(value == default)


def _hint(kind: type, key: str) -> Any:
    try:
        return _hints(kind)[key]
    except (NameError, AttributeError, TypeError):  # annotations that only type checkers can read
        return Any


def _wrong_settings(values: Mapping[str, Any], place: str) -> Wrong:
    """Of flat names; one that several parts take is right if it is for one of them."""
    hints = {key: _hints(Method)[key] for key in OWN}
    hints |= {key: _hints(Cuts)[name] for key, name in CUTS.items()}
    hints |= {key: _hints(Targets)[key] for key in TARGETS}
    hints |= dict.fromkeys(MEMBERS, str | bool | Mapping[str, Any] | None)
    parts = settings()
    for key, value in values.items():
        if key in _FIXED:
            continue
        if key in parts:
            wrong = [list(_wrong_part({key: value}, kind, place)) for kind in parts[key]]
            yield from min(wrong, key=len)
        elif key in hints and not (key in CUTS and value is None):  # null: what `deploy` says
            yield from _wrong_value(value, hints[key], place + key)


def _wrong_overrides(targets: Mapping[str, Any], place: str) -> Wrong:
    for index, (_, changes) in enumerate(targets.get("overrides", ())):
        yield from _wrong_settings({k: v for k, v in changes.items() if k != "skip"}, f"{place}overrides[{index}].")
