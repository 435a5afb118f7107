"""Every number that a method may be given has a most."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_args, get_type_hints

import pytest

from segquant import Method, QuantSpec, presets, registry
from segquant.bounds import MOST
from segquant.calibrators.reconstruction import Reconstruction
from segquant.method.parts import Budget

SLOTS = ("calibrator", "optimizer", "rotation", "range")


def _numbers(kind: Any) -> Iterator[str]:
    for name, hint in get_type_hints(kind).items():
        if {int, float} & {hint, *get_args(hint)} and name in {field.name for field in fields(kind)}:
            yield name


def _members() -> Iterator[type]:
    for slot in SLOTS:
        found = registry.table(slot).values()
        yield from (kind for kind in found if is_dataclass(kind) and kind.__module__.startswith("segquant."))
    yield from (Reconstruction, Budget, Method, QuantSpec)


def test_every_number_of_a_method_has_one() -> None:
    found = {name for kind in _members() for name in _numbers(kind)}
    assert found - MOST.keys() == {"seed"}  # which has a rule of its own
    assert MOST.keys() - found == {"alpha_step", "threshold"}  # of other tools


@pytest.mark.parametrize("kind", [each for each in _members() if each not in (Method, QuantSpec)])
def test_more_is_refused(kind: Any) -> None:
    for name in _numbers(kind):
        with pytest.raises(ValueError, match=name):
            kind(**{name: type(MOST[name])(2 * MOST[name] + 1)})
        default = next(field.default for field in fields(kind) if field.name == name)
        assert default is MISSING or not isinstance(default, int | float) or default <= MOST[name]


def test_more_than_a_method_takes() -> None:
    for key, value in (("gram_shrinkage", 1e13), ("headroom", 1e7), ("rank", 70_000)):
        with pytest.raises(ValueError, match=f"{key}=.* must be at most"):
            presets.segquant_g("w8a8_tensor", **{key: value})
    with pytest.raises(ValueError, match="group_size=2000000 must be at most 1000000"):
        QuantSpec("int4", "group", 2_000_000)


def test_as_much_is_taken() -> None:
    assert Reconstruction(steps=1_000_000).steps == 1_000_000
    assert presets.svdquant("w4a8", rank=65_536, iterations=1000).optimizer.rank == 65_536
