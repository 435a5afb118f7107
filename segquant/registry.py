"""Parts by name, for saved forms. Reading never imports by a name in a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from segquant.checks import described
from segquant.errors import QuantizationError, UnknownHereError, nearest

Part = TypeVar("Part")

SLOTS = ("calibrator", "optimizer", "rotation", "range", "transform", "backend", "precision")
_TABLES: dict[str, dict[str, Any]] = {slot: {} for slot in SLOTS}


def table(slot: str) -> dict[str, Any]:
    return _TABLES[slot]


def register(part: Part, *, name: str | None = None) -> Part:
    """Make a part known by its name; returns it. Also a class decorator.

    Args:
        part: a class derived from Calibrator, Optimizer, Rotation, Range, Transform or Backend with a `name`; or a
            QuantScheme (a precision).
        name: for a QuantScheme only.

    Raises:
        QuantizationError: no such slot, no name, or it is taken.
    """
    slot = getattr(part, "slot", None)
    if slot not in _TABLES:
        raise QuantizationError(
            f"{described(part)} is no part that can be registered; derive a class from segquant.Calibrator, Optimizer, "
            "Rotation, Range, Transform or Backend, or give a QuantScheme"
        )
    own = name if name is not None else getattr(part, "name", None)
    if not isinstance(own, str) or not own:
        advice = "give register(scheme, name=…)" if slot == "precision" else "give the class name: ClassVar[str] = …"
        raise QuantizationError(f"the {slot} {described(part)} has no name; {advice}")
    known = _TABLES[slot].get(own)
    if known is not None and known != part and not _is_redefined(known, part):
        raise QuantizationError(f"there is a {slot} {own!r} already, {known!r}; choose another name")
    _TABLES[slot][own] = part
    return part


def _is_redefined(known: Any, part: Any) -> bool:
    where = [(getattr(kind, "__module__", None), getattr(kind, "__qualname__", None)) for kind in (known, part)]
    return isinstance(part, type) and where[0] == where[1]


def find(slot: str, name: str, *, asker: str | None = None) -> Any:
    """The part of a name.

    Args:
        slot: one of SLOTS.
        asker: what in a file needs it; None if a person typed the name.

    Raises:
        QuantizationError: unknown name.
    """
    found = _TABLES[slot].get(name) if isinstance(name, str) else None
    if found is None and asker is None:
        raise QuantizationError(f"unknown {slot} {described(name)}; {nearest(str(name), _TABLES[slot])}")
    if found is None:
        raise UnknownHereError(
            f"{asker} was made with {slot} {name!r}, which is not registered here; import the package that defines it "
            "first"
        )
    return found


def fields_of(kind: type) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else {}


def to_dict(part: Any) -> dict[str, Any]:
    """A part's name and fields, JSON-ready."""
    values = dataclasses.asdict(part) if dataclasses.is_dataclass(part) and not isinstance(part, type) else {}
    return {"name": part.name, **values}


def from_dict(slot: str, values: Mapping[str, Any], *, asker: str) -> Any:
    """Inverse of `to_dict`.

    Raises:
        QuantizationError: unknown name or key.
    """
    if not isinstance(values, Mapping) or "name" not in values:
        raise QuantizationError(f"{asker} has {described(values)} as its {slot}; it must be a name and its fields")
    kind = find(slot, values["name"], asker=asker)
    return build(kind, {key: value for key, value in values.items() if key != "name"})


def build(kind: type, values: Mapping[str, Any]) -> Any:
    """A part from plain values; lists become tuples, mappings the dataclass of the field's default.

    Raises:
        QuantizationError: a key is no field.
        ValueError: the part refuses a value.
    """
    known = fields_of(kind)
    for key in values:
        if key not in known:
            raise UnknownHereError(f"{kind.__name__} has no field {described(key)}; {nearest(str(key), known)}")
    return kind(**{key: _plain(known[key], value) for key, value in values.items()})


def default_of(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def _plain(field: dataclasses.Field[Any], value: Any) -> Any:
    default = default_of(field)
    if isinstance(value, Mapping) and dataclasses.is_dataclass(default):
        return build(type(default), value)
    return tuple(value) if isinstance(value, list) else value
