from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from segquant_bench.hints import nearest
from segquant_bench.pipelines.config.own_paths import path_of
from segquant_bench.pipelines.errors import PipelineError, one_line
from segquant_bench.pipelines.runtime import own_code
from segquant_bench.pipelines.runtime.own_code import TARGET

KEYS = (TARGET, "name", "fallback")


@dataclass(frozen=True)
class BackendChoice:
    """Registered names: the backend, and one for layers that it cannot run (None: refuse)."""

    name: str
    fallback: str | None = None


def find_backend(value: Any) -> BackendChoice:
    """The configured backend, registered.

    Args:
        value: a registered name, a class's dotted path, or {name or `_target_`, perhaps `fallback`}.

    Raises:
        PipelineError: no such backend, or unknown keys.
    """
    import segquant  # torch: not for `segquant --help`
    from segquant import registry

    if value is None or isinstance(value, bool | int | float | list):
        raise PipelineError(f"backend={value} is no backend; give a name, such as reference or cpu")
    given = dict(value) if isinstance(value, Mapping) else {TARGET if path_of(value) else "name": value}
    for key in given:
        if key not in KEYS:
            raise PipelineError(f"there is no key 'backend.{key}'; {nearest(str(key), KEYS)}")
    if len(given.keys() & {TARGET, "name"}) != 1:
        raise PipelineError(f"backend={dict(given)} must have either name or {TARGET}")
    name = given.get("name")
    if name is None:
        path = str(given[TARGET])
        kind = own_code.find(path, "backend")
        if not isinstance(kind, type) or getattr(kind, "slot", None) != "backend":
            raise PipelineError(f"backend={path} is no backend; name a class that derives from segquant.Backend")
        name = _registered(segquant.register, kind).name
    for each in (name, given.get("fallback")):
        if each is not None:
            _registered(lambda known: registry.find("backend", known), str(each))
    return BackendChoice(str(name), given.get("fallback"))


def _registered(ask: Any, what: Any) -> Any:
    try:
        return ask(what)
    except ValueError as error:
        raise PipelineError(f"backend: {one_line(error)}") from error
