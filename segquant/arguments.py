"""Methods as people give them: as they are, by name, or as a dictionary."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from segquant import presets
from segquant.checks import described
from segquant.errors import QuantizationError, nearest
from segquant.method.spec import Method
from segquant.numerics.precisions import PRECISIONS

GivenMethod = Method | str | Mapping[str, Any]
"""A method; the name of a preset, at its default precision; or {"name": …, "precision": …, settings}."""
PRESETS: dict[str, Callable[..., Method]] = {
    name: value
    for name, value in ((name, getattr(presets, name)) for name in presets.__all__)
    if inspect.isfunction(value)
}
_ADVICE = "give a method, for example presets.segquant_g('w8a8_tensor'), or the name of one"
_ELSEWHERE = "the benchmark's own (other tools, corrections) are no methods here: segquant quantizer=NAME sets them"
"""In the command line of segquant_bench, which the library does not know."""


def method_of(given: GivenMethod) -> Method:
    """The method that is meant.

    Raises:
        QuantizationError: it is none; how to write one.
    """
    if isinstance(given, Method):
        return given
    if isinstance(given, str):
        return _called(given, {})
    if isinstance(given, Mapping):
        values = dict(given)
        if "scheme" in values:
            return _told(lambda: Method.from_dict(values), "a saved method")
        if not isinstance(values.get("name"), str):
            raise QuantizationError(f"the method {described(given)} has no name; write {{'name': 'segquant_g', …}}")
        return _called(values.pop("name"), values)
    name = getattr(given, "__name__", None)
    if inspect.isfunction(given) and name in PRESETS:
        raise QuantizationError(f"method is the function {name}; call it: presets.{name}('w8a8_tensor')")
    raise QuantizationError(f"method is {described(given)}; {_ADVICE}")


def _called(name: str, settings: Mapping[str, Any]) -> Method:
    if name in PRECISIONS:
        raise QuantizationError(f"{name!r} is a precision, not a method; write presets.segquant_g({name!r})")
    if name not in PRESETS:
        raise QuantizationError(f"unknown method {name!r}; {nearest(name, PRESETS)}; {_ELSEWHERE}")
    return _told(lambda: PRESETS[name](**settings), f"method {name!r}")


def _told(make: Callable[[], Method], what: str) -> Method:
    try:
        return make()
    except QuantizationError:
        raise
    except (ValueError, TypeError, KeyError) as error:
        raise QuantizationError(f"{what} cannot be made: {error}") from error
