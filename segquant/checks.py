"""Arguments of another type are refused in one sentence; the annotations say which types there are."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import numbers
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from segquant.errors import QuantizationError, nearest

P = ParamSpec("P")
R = TypeVar("R")
_WORDS: dict[Any, str] = {
    bool: "True or False", int: "a whole number", float: "a number", str: "a string", type(None): "None",
}  # fmt: skip
_NUMBERS: dict[Any, type] = {int: numbers.Integral, float: numbers.Real}
_SHOWN = 60


def checked(**words: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator: a QuantizationError for an argument that does not fit its annotation.

    Args:
        words: by argument, what to give; "" for what the function checks itself.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError:
                _refuse_unknown(function, signature, kwargs)
                return function(*args, **kwargs)  # which tells what is missing or too much
            for name, value in given.items():
                _require_argument(function, signature.parameters[name], value, words)
            return function(*args, **kwargs)

        return wrapper

    return decorate


def _refuse_unknown(function: Callable[..., Any], signature: inspect.Signature, given: Mapping[str, Any]) -> None:
    """TypeError, as Python's own, with the nearest keyword that there is."""
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    unknown = [key for key in given if key not in signature.parameters]
    if unknown and inspect.Parameter.VAR_KEYWORD not in kinds:
        raise TypeError(f"{function.__name__} takes no {unknown[0]!r}; {nearest(unknown[0], signature.parameters)}")


def check_fields(instance: Any, **words: str) -> None:
    """For a dataclass's `__post_init__`: a QuantizationError for a field that does not fit its annotation."""
    kind = type(instance)
    hints = _hints(kind)
    for field in dataclasses.fields(instance):
        require(getattr(instance, field.name), hints[field.name], kind.__name__, field.name, words.get(field.name))


def check_set_fields(part: Any) -> None:
    """As `check_fields`, for a part that may be anybody's: what is at its default may be of any type.

    A class that is no dataclass, and annotations that only type checkers can read, are let through.
    """
    kind = type(part)
    if not dataclasses.is_dataclass(kind):
        return
    try:
        hints = _hints(kind)
    except (NameError, AttributeError, TypeError):
        return
    for field in dataclasses.fields(kind):
        value = getattr(part, field.name)
        if field.init and value is not field.default and _is_told(hints[field.name]):
            require(value, hints[field.name], kind.__name__, field.name)


def _is_told(hint: Any) -> bool:
    """Whether `fits` can judge by it: plain types, and unions of them."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return all(map(_is_told, parts))
    return hint in _WORDS or hint is None


def require(value: Any, hint: Any, whose: str, name: str, words: str | None = None) -> None:
    """Raise QuantizationError unless the value fits the type."""
    if not fits(value, hint):
        raise QuantizationError(f"{whose}: {name} is {described(value)}; give {words or _worded(hint)}")


def _require_argument(
    function: Callable[..., Any], parameter: inspect.Parameter, value: Any, words: Mapping[str, str]
) -> None:
    hint = _hints(function).get(parameter.name, Any)
    if parameter.kind is inspect.Parameter.VAR_KEYWORD:
        known = _hints(typing.get_args(hint)[0]) if typing.get_origin(hint) is typing.Unpack else {}
        pairs = [(key, entry, known.get(key, Any)) for key, entry in value.items()]
    else:
        pairs = [(parameter.name, value, hint)]
    for name, entry, wanted in pairs:
        if words.get(name) != "":
            require(entry, wanted, function.__name__, name, words.get(name))


_HINTS: dict[Any, dict[str, Any]] = {}


def _hints(source: Any) -> dict[str, Any]:
    if source not in _HINTS:
        _HINTS[source] = typing.get_type_hints(source)
    return _HINTS[source]


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type. Whole numbers are numbers, True is none; lists may stand for tuples."""
    if hint is Any or isinstance(hint, TypeVar):
        return True
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is typing.Literal:
        return any(type(value) is type(part) for part in parts)  # which of them: `check_choice`
    if hint in _NUMBERS:
        return isinstance(value, _NUMBERS[hint]) and not isinstance(value, bool)
    if getattr(hint, "_is_protocol", False):
        return getattr(value, "slot", None) == getattr(hint, "slot", None) and not isinstance(value, (str, type))
    kind = origin or (type(None) if hint is None else hint)
    if kind is collections.abc.Iterable:
        return True  # checked where it is read, since an iterator can be read once
    if kind is tuple:
        return _is_sequence(value) and _fit_entries(value, parts)
    if kind in (collections.abc.Sequence, collections.abc.Collection, list):
        plain = isinstance(value, kind) and not isinstance(value, (str, bytes)) and not hasattr(value, "shape")
        return plain and _fit_entries(value, (*parts, ...))
    if kind is not dict and kind is not collections.abc.Mapping:
        return isinstance(value, kind)
    return isinstance(value, Mapping) and (
        not parts or all(fits(key, parts[0]) and fits(entry, parts[1]) for key, entry in value.items())
    )


def _is_sequence(value: Any) -> bool:
    return isinstance(value, collections.abc.Sequence) and not isinstance(value, (str, bytes))


def _fit_entries(values: Any, parts: tuple[Any, ...]) -> bool:
    if len(parts) < 2 or parts[-1] is not ...:
        return not parts or (len(values) == len(parts) and all(map(fits, values, parts)))
    return all(fits(entry, parts[0]) for entry in values)


def listed(name: str, values: Any, words: str = "a list") -> list[Any]:
    """The entries of what must be a list, or read like one."""
    if isinstance(values, (str, bytes)) or hasattr(values, "shape") or not isinstance(values, collections.abc.Iterable):
        raise QuantizationError(f"{name} is {described(values)}; give {words}")
    return list(values)


def described(value: Any) -> str:
    """A value in a sentence: short, on one line."""
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        shown = repr(value)
        return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]} …"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if inspect.isroutine(value):
        return f"the function {getattr(value, '__name__', 'without a name')}"
    if type(value) in (list, tuple, dict, set):
        shown = repr(value) if not any(hasattr(entry, "shape") for entry in value) else ""
        return shown if 0 < len(shown) <= _SHOWN and "\n" not in shown else f"a {type(value).__name__} of {len(value)}"
    shape = getattr(value, "shape", None)
    return _with_article(type(value).__name__) + (f" of shape {list(shape)}" if isinstance(shape, tuple) else "")


def _with_article(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeio' else 'a'} {name}"


def _worded(hint: Any) -> str:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_worded, parts)))
    if origin is typing.Literal:
        return " or ".join(map(repr, parts))
    if hint in _WORDS:
        return _WORDS[hint]
    kind = origin or hint
    if kind is collections.abc.Callable:
        return "a function"
    inner = [_plural(part) for part in parts if part is not ...]
    if kind in (dict, collections.abc.Mapping):
        return f"a dictionary of {inner[0]} and {inner[1]}" if inner else "a dictionary"
    if kind in (tuple, list) or getattr(kind, "__module__", "") == "collections.abc":
        return f"a list of {inner[0]}" if inner else "a list"
    return _with_article(getattr(kind, "__name__", str(kind)))


def _plural(hint: Any) -> str:
    words = _worded(hint)
    if hint is Any:
        return "values"
    head, _, rest = words.partition(" ")
    return f"{rest}s" if head in ("a", "an") and " or " not in rest else words
