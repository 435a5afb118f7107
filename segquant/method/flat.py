"""Flat names of a method's settings: `rank`, `act_order` … of members; `optimizer`, `calibrator` … for members.

A setting without a member waits in `Method.spare`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, TypeVar

from segquant import registry
from segquant.checks import described
from segquant.errors import nearest
from segquant.method.parts import DEPLOY, Budget, Cuts, Targets, engine_cuts
from segquant.numerics.formats import QuantScheme, check_choice
from segquant.numerics.precisions import scheme_of

MEMBERS = {"optimizer": "optimizer", "rotate": "rotation", "calibrator": "calibrator", "ranges": "range"}
"""Slot of the registry by flat name."""
ATTRIBUTES = {"rotate": "rotation"}
"""Attribute of `Method` by flat name, where they differ."""
CUTS = {
    "seglinear": "seglinear", "dualscale": "dualscale", "cuts": "control", "negative": "negative", "columns": "columns",
    "smoothing": "smoothing",
}  # fmt: skip
TARGETS = ("skip", "overrides", "on_uncalled", "convolutions")
OWN = ("name", "scheme", "bias_correction", "headroom", "gram_shrinkage", "seed", "budget")
DEFAULT_ROTATION = "hadamard"


class HasParts(Protocol):  # `Method` imports this module
    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def cuts(self) -> Cuts: ...
    @property
    def targets(self) -> Targets: ...
    @property
    def rotation(self) -> Any: ...
    @property
    def scheme(self) -> QuantScheme: ...
    @property
    def spare(self) -> Mapping[str, Any]: ...


M = TypeVar("M", bound=HasParts)


def settings() -> dict[str, list[type]]:
    """Names of all members' settings, and the classes that take each."""
    found: dict[str, list[type]] = {}
    for slot in MEMBERS.values():
        for kind in registry.table(slot).values():
            for field in registry.fields_of(kind):
                found.setdefault(field, []).append(kind)
    return found


def flat_names() -> set[str]:
    """All names that `changed` takes, "precision" aside."""
    return {"deploy", *OWN, *CUTS, *TARGETS, *MEMBERS, *settings()}


def attribute(name: str) -> str:
    return ATTRIBUTES.get(name, name)


def value_of(method: HasParts, name: str) -> Any:
    """A flat name's value: the member's, else `spare`'s, else the default."""
    if name == "deploy":  # the first engine that needs these cuts
        own = {key: getattr(method.cuts, key) for key in DEPLOY["none"]}
        return next((engine for engine, cuts in DEPLOY.items() if cuts == own), None)
    if name in CUTS:
        return getattr(method.cuts, CUTS[name])
    if name in TARGETS:
        return getattr(method.targets, name)
    if name == "rotate":
        return method.rotation is not None
    if name in MEMBERS:
        return getattr(method, name).name
    if name in OWN:
        return getattr(method, name)
    for member in _members(method):
        if name in registry.fields_of(type(member)):
            return getattr(member, name)
    kinds = settings()
    if name not in kinds:
        raise ValueError(f"a method has no {name!r}; {nearest(name, flat_names())}")
    return method.spare.get(name, registry.default_of(registry.fields_of(kinds[name][0])[name]))


def changed(method: M, changes: Mapping[str, Any]) -> M:
    """The method with other values of flat names ("precision" for the scheme).

    Raises:
        ValueError: an unknown name, or a value that its part refuses.
    """
    changes = dict(changes)
    if "precision" in changes:
        changes["scheme"] = scheme_of(changes.pop("precision"))
    if "deploy" in changes:
        engine = changes.pop("deploy")
        check_choice("deploy", engine, tuple(DEPLOY))
        wanted = engine_cuts(engine, changes.get("scheme", method.scheme))
        changes |= {key: value for key, value in wanted.items() if changes.get(key) is None}
    for key in DEPLOY["none"]:
        if changes.get(key, "") is None:  # what `deploy` says, else what it is
            del changes[key]
    known, kinds = flat_names(), settings()
    for key in changes:
        if key not in known:
            raise ValueError(f"a method has no {described(key)}; {nearest(str(key), known)}")
    parts: dict[str, Any] = {key: changes[key] for key in OWN if key in changes}
    if isinstance(parts.get("budget"), Mapping):
        parts["budget"] = registry.build(Budget, parts["budget"])
    parts["cuts"] = _replaced(method.cuts, {CUTS[key]: changes[key] for key in CUTS if key in changes})
    parts["targets"] = _replaced(method.targets, {key: changes[key] for key in TARGETS if key in changes})
    given = {key: value for key, value in changes.items() if key in kinds}
    parts |= _with_settings(method, {key: changes[key] for key in MEMBERS if key in changes}, given)
    return dataclasses.replace(method, **parts)


def _with_settings(method: HasParts, chosen: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    waiting = {**method.spare}
    for member in _members(method):
        waiting |= {key: getattr(member, key) for key in registry.fields_of(type(member))}
    parts: dict[str, Any] = {}
    for name, slot in MEMBERS.items():
        member = getattr(method, attribute(name))
        if name in chosen:
            member = _member(name, slot, chosen[name])
            if isinstance(member, type):  # named, so that it takes over what the one before was set to
                member = registry.build(member, _taken(waiting, member))
        if member is not None:
            own = _taken(given, type(member))
            member = _replaced(member, _plain(type(member), own))
        parts[attribute(name)] = member
    waiting |= given
    taken = {key for name in MEMBERS for key in registry.fields_of(type(parts[attribute(name)]))}
    parts["spare"] = _spare({key: value for key, value in waiting.items() if key not in taken})
    return parts


def _member(name: str, slot: str, value: Any) -> Any:
    if name == "rotate" and isinstance(value, bool):
        return registry.find(slot, DEFAULT_ROTATION) if value else None
    if isinstance(value, Mapping):
        return registry.from_dict(slot, value, asker="a method")
    if getattr(value, "slot", None) == slot:
        return value
    return registry.find(slot, value)


def _taken(values: Mapping[str, Any], kind: type) -> dict[str, Any]:
    return {key: values[key] for key in registry.fields_of(kind) if key in values}


def _plain(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: getattr(registry.build(kind, {key: value}), key) for key, value in values.items()}


def _spare(values: Mapping[str, Any]) -> dict[str, Any]:
    found, kinds = {}, settings()
    for key in sorted(values.keys() & kinds.keys()):  # a member that is not registered takes its settings with it
        kind, value = kinds[key][0], values[key]
        checked = getattr(registry.build(kind, {key: value}), key)
        if checked != registry.default_of(registry.fields_of(kind)[key]):
            found[key] = checked
    return found


def _replaced(part: Any, values: Mapping[str, Any]) -> Any:
    return dataclasses.replace(part, **values) if values else part


def _members(method: HasParts) -> list[Any]:
    found = (getattr(method, attribute(name)) for name in MEMBERS)
    return [member for member in found if member is not None]
