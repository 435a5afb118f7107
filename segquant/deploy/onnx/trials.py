"""Which sizes a traced model takes, by trials: the model and its graph are run at other sizes, and compared.

torch.export states bounds, but not what sizes are multiples of, and it makes constants of sizes of 1 and of tables that
a forward computes. What a trial says: RIGHT (both run and agree), WRONG (the model runs and the graph does otherwise),
SILENT (the model does not run: the sizes are none of its own, or others must change with them).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

LARGEST = 8
"""Greater bounds are of the model, and not lowered."""
DOUBLED = 64
"""Larger sizes are doubled only where none beside them runs: attention is quadratic."""
TOGETHER = 3
"""Symbols of one size, of which every choice is tried; more vary all together."""


class Verdict(enum.Enum):
    """Of a trial."""

    RIGHT = enum.auto()
    WRONG = enum.auto()
    SILENT = enum.auto()


@dataclass(frozen=True)
class Free:
    """A symbol of the traced program.

    Args:
        name: of the symbol.
        size: the example's.
        low: the program's least.
        high: the program's greatest, None: without end.
        places: rank and dimension of every input's size that it is.
    """

    name: str
    size: int
    low: int
    high: int | None
    places: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Sizes:
    """What is known of a symbol's sizes beyond the program.

    Args:
        name: of the dimension; symbols of one name have one size.
        least: where it is right below the program's own bound.
        step: sizes are multiples of it.
        fixed: the graph is right at the example's size alone.
    """

    name: str
    least: int | None = None
    step: int = 1
    fixed: bool = False


Trial = Callable[[Mapping[str, int]], Verdict]
Unit = tuple[Free, ...]
"""Symbols that vary together, the first by itself and the others in proportion."""


def sizes_of(symbols: Sequence[Free], trial: Trial) -> dict[str, Sizes]:
    """Sizes by symbol, from trials of some of them with all others as in the example.

    Symbols that the model only takes in other sizes together are found by trials too: those of one size, as batches and
    lengths are, then all heights or widths of pictures. They have one name where their sizes are one. A symbol that the
    model takes in no other size stays as the program says; widths of features stay the example's.
    """
    trial = _remembering(trial)
    found: dict[str, Sizes] = {}
    changed: dict[str, int] = {}
    left = list(symbols)
    while left:
        unit, known, other = _first(left, trial)
        if other is not None and trial({**changed, **_at(unit, other)}) is Verdict.WRONG:
            known, other = _fixed(unit), None
        found.update({each.name: sizes for each, sizes in zip(unit, known, strict=True)})
        changed.update({} if other is None else _at(unit, other))
        left = [each for each in left if each not in unit]
    _lower([each for each in symbols if not found[each.name].fixed], found, trial)
    return found


def _remembering(trial: Trial) -> Trial:
    known: dict[frozenset[tuple[str, int]], Verdict] = {}

    def told(sizes: Mapping[str, int]) -> Verdict:
        key = frozenset(sizes.items())
        if key not in known:
            known[key] = trial(sizes)
        return known[key]

    return told


def _first(left: Sequence[Free], trial: Trial) -> tuple[Unit, list[Sizes], int | None]:
    """The first symbol, alone or with those that must change with it, and another size that is right, if any is."""
    wrong = False
    for unit in _choices(left[0], left):
        if not _runs(unit, trial):
            continue
        step, differs = _step(unit, trial)
        if step:
            up = trial(_at(unit, unit[0].size + step)) is Verdict.RIGHT
            return unit, _named(unit, step), unit[0].size + (step if up else -step)
        wrong = wrong or differs
    alone = (left[0],)
    return alone, _fixed(alone) if wrong or all(map(_is_width, left[0].places)) else [Sizes(left[0].name)], None


def _choices(first: Free, left: Sequence[Free]) -> Iterator[Unit]:
    yield (first,)
    alike = [each for each in left[1:] if each.size == first.size]
    for count in range(1, min(len(alike), TOGETHER) + 1):
        yield from ((first, *others) for others in combinations(alike, count))
    if len(alike) > TOGETHER:
        yield (first, *alike)
    for dim in (2, 3):
        if (4, dim) in first.places:
            yield (first, *(each for each in left[1:] if (4, dim) in each.places))


def _runs(unit: Unit, trial: Trial) -> bool:
    size = unit[0].size
    tried = (size + 1, size + 2, size - 1, size - 2, 2 * size)
    return any(_within(unit, other) and trial(_at(unit, other)) is not Verdict.SILENT for other in tried)


def _at(unit: Unit, size: int) -> dict[str, int]:
    """The first symbol's size, and the others in proportion, rounded up as convolutions with a stride of 2 do."""
    return {each.name: -(-each.size * size // unit[0].size) for each in unit}


def _within(unit: Unit, size: int) -> bool:
    given = _at(unit, size)
    return all(each.low <= given[each.name] <= (each.high or given[each.name]) for each in unit)


def _step(unit: Unit, trial: Trial) -> tuple[int | None, bool]:
    """What the first symbol's sizes are multiples of, None where nothing was found; whether any trial was wrong."""
    size, wrong = unit[0].size, False
    for step in (each for each in range(1, size + 1) if size % each == 0):
        verdicts = {other: trial(_at(unit, other)) for other in _others(unit, step)}
        if Verdict.WRONG in verdicts.values():
            wrong = True
            continue
        for sign in (1, -1):
            near = [verdicts[other] for other in (size + sign * step, size + 2 * sign * step) if other in verdicts]
            if near and all(verdict is Verdict.RIGHT for verdict in near):
                return step, wrong
    return None, wrong


def _others(unit: Unit, step: int) -> list[int]:
    size = unit[0].size
    tried = {size + step, size + 2 * step, size - step, size - 2 * step, 2 * size}
    most = max(tried) if size <= DOUBLED else size + size // 2
    return sorted(each for each in tried if each <= most and _within(unit, each))


def _fixed(unit: Unit) -> list[Sizes]:
    return [Sizes(each.name, fixed=True) for each in unit]


def _named(unit: Unit, step: int) -> list[Sizes]:
    first = unit[0]
    return [
        Sizes(first.name if each.size == first.size else each.name, step=max(1, step * each.size // first.size))
        for each in unit
    ]


def _is_width(place: tuple[int, int]) -> bool:
    """Whether a dimension is of features: the last of a batch's vectors or of its tokens."""
    rank, dim = place
    return rank in (2, 3) and dim == rank - 1


def _lower(symbols: Sequence[Free], found: dict[str, Sizes], trial: Trial) -> None:
    """Take sizes below the program's bound that are right, alone and with those taken before."""
    least: dict[str, int] = {}
    for name in dict.fromkeys(found[each.name].name for each in symbols):
        unit = [each for each in symbols if found[each.name].name == name]
        low = max(each.low for each in unit)
        for size in range(low - 1, 0, -1) if low <= LARGEST else ():
            alone = dict.fromkeys((each.name for each in unit), size)
            trials = [alone] if not least else [alone, {**least, **alone}]
            if not all(trial(sizes) is Verdict.RIGHT for sizes in trials):
                break
            least.update(alone)
    for each, size in least.items():
        known = found[each]
        found[each] = Sizes(known.name, size, known.step, known.fixed)
