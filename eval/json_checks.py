"""What a JSON file must hold: the first key that holds something else is told in one sentence."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segquant_bench.eval.errors import EvalError

Check = Callable[[Any, str], Iterator[str]]
"""(value, its place such as ``metrics[0].value``) -> what is wrong with it, first things first."""

LARGEST = 1e100
"""Of a number. No measurement is larger, and sums and products of such ones stay finite."""
WHOLE = 2**63
"""Whole numbers are below it: databases and arrays hold no more."""
DEEPEST = 100
"""Levels of nesting; recursion ends at some hundreds."""
LONGEST = 60
"""Characters that a sentence shows of a value."""


def read_checked(path: Path, check: Check, remedy: str) -> Any:
    """The content of a JSON file; EvalError, with what to do, if it cannot be read or is not as `check` wants it."""
    try:
        raw = json.loads(path.read_bytes().decode("utf-8"))
    except ValueError as error:  # of encodings, of JSON, of integers with thousands of digits
        raise EvalError(f"{path} is not readable JSON ({error}); {remedy}") from error
    except RecursionError as error:
        raise EvalError(f"{path} is nested too deeply; {remedy}") from error
    except OSError as error:
        raise EvalError(f"{path} cannot be read: {error.strerror}") from error
    if is_deep(raw):
        raise EvalError(f"{path} is nested too deeply; {remedy}")
    require(raw, check, str(path), remedy)
    return raw


def require(raw: Any, check: Check, what: str, remedy: str) -> None:
    """EvalError with the first problem of `what`."""
    problem = next(check(raw, ""), None)
    if problem is not None:
        raise EvalError(f"{what} {problem}; {remedy}")


def is_deep(raw: Any) -> bool:
    """Whether a value is nested deeper than any of ours."""
    level = [raw]
    for _ in range(DEEPEST):
        level = [inner for value in level if isinstance(value, (dict, list)) for inner in _inside(value)]
        if not level:
            return False
    return True


def _inside(value: dict[str, Any] | list[Any]) -> Collection[Any]:
    return value.values() if isinstance(value, dict) else value


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST  # NaN is not


def _stays(path: str) -> bool:
    """Whether a relative path leads to a place below where it begins, by its text alone: links are followed."""
    parts = path.replace("\\", "/").split("/")
    return "\0" not in path and ".." not in parts and not path.startswith("/")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < WHOLE


@dataclass(frozen=True)
class Kind:
    """A check of a value by itself; `what` it must be ends the sentence.

    `least`: floats from here to LARGEST are right. `empty`: None is right.
    """

    what: str
    is_right: Callable[[Any], bool]
    least: float | None = None
    empty: bool = False

    def __call__(self, value: Any, place: str) -> Iterator[str]:
        if not self.is_right(value):
            yield f"holds {f'{place} = ' if place else ''}{shown(value)}, which must be {self.what}"


def _all_right(check: Check, values: Iterable[Any]) -> bool:
    """Whether it takes no more to know that nothing is wrong: files hold thousands of numbers."""
    if not isinstance(check, Kind):
        return False
    if check.least is not None:
        known = [value for value in values if value is not None] if check.empty else list(values)
        if set(map(type, known)) == {float} and min(known) >= check.least and max(known) <= LARGEST:
            return not math.isnan(sum(known))  # which comparisons may miss
    return all(map(check.is_right, values))


TEXT = Kind("a text", lambda value: isinstance(value, str))
NAME = Kind("a text, not an empty one", lambda value: isinstance(value, str) and value != "")
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
INSIDE = Kind("a path within its folder", lambda value: isinstance(value, str) and _stays(value))
COUNT = Kind("a whole number, at least 0 and below 2^63", _is_count)
AMOUNT = Kind("a number, at least 0 and at most 1e100", lambda value: is_number(value) and value >= 0, 0.0)
NUMBER = Kind("a number of at most 1e100", is_number, -LARGEST)
VALUE = Kind(
    'a number of at most 1e100, "inf" or "-inf"', lambda value: is_number(value) or value in ("inf", "-inf"), -LARGEST
)
SCALAR = Kind("a text or a number", lambda value: isinstance(value, str | int | float))
ANYTHING = Kind("anything", lambda value: True)


def one_of(known: Collection[Any]) -> Check:
    return Kind(f"one of {', '.join(map(shown, known))}", lambda value: value in known)


def optional(check: Check) -> Check:
    """Null is right too."""
    if isinstance(check, Kind):
        is_right = check.is_right
        return Kind(check.what, lambda value: value is None or is_right(value), check.least, empty=True)
    return lambda value, place: iter(()) if value is None else check(value, place)


def list_of(check: Check, least: int = 0, most: float = math.inf, what: str = "a list") -> Check:
    whole = Kind(what, lambda value: isinstance(value, list) and least <= len(value) <= most)

    def every(value: Any, place: str) -> Iterator[str]:
        yield from whole(value, place)
        held = value if isinstance(value, list) else []
        for index, item in enumerate(held if not _all_right(check, held) else ()):
            yield from check(item, f"{place}[{index}]")

    return every


def mapping_of(check: Check) -> Check:
    whole = Kind("a mapping", lambda value: isinstance(value, dict))

    def every(value: Any, place: str) -> Iterator[str]:
        yield from whole(value, place)
        held = value if isinstance(value, dict) else {}
        for key, item in held.items() if not _all_right(check, held.values()) else ():
            yield from check(item, f"{place}.{key}" if place else key)

    return every


def record(needed: Mapping[str, Check], known: Mapping[str, Check]) -> Check:
    """A mapping that has the `needed` keys; `known` ones may be absent or null, all others are free."""
    whole = mapping_of(ANYTHING)
    checks = {**needed, **{key: optional(check) for key, check in known.items()}}

    def every(value: Any, place: str) -> Iterator[str]:
        yield from whole(value, place)
        held = value if isinstance(value, dict) else {}
        missing = [repr(key) if place else key for key in needed if key not in held]
        if missing:
            yield f"holds {place}, which has no {missing[0]}" if place else f"lacks {', '.join(missing)}"
        for key, check in checks.items():
            if key in held:
                yield from check(held[key], f"{place}.{key}" if place else key)

    return every


def shown(value: Any) -> str:
    """A value in a sentence, shortened."""
    if isinstance(value, dict | list):
        return f"{'an empty' if not value else 'a'} {'mapping' if isinstance(value, dict) else 'list'}"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
