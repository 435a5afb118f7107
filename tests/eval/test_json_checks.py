"""Checks of many values at once say what checks of one at a time do."""

from __future__ import annotations

import math
from typing import Any

import pytest

from segquant_bench.eval.json_checks import AMOUNT, COUNT, LARGEST, NUMBER, TEXT, VALUE, Check, list_of, mapping_of
from segquant_bench.eval.json_checks import optional as or_null

ODD = (
    math.nan, math.inf, -math.inf, -1.0, -0.0, 2 * LARGEST, -LARGEST, True, None, "inf", "x", 3, -3, 10**400, [], {},
)  # fmt: skip


@pytest.mark.parametrize("check", [AMOUNT, COUNT, NUMBER, TEXT, VALUE, or_null(AMOUNT), or_null(VALUE)])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_odd_value_among_floats_is_found_where_it_is(check: Check, place: int) -> None:
    for odd in ODD:
        values: list[Any] = [0.5, 1.5, 2.5]
        values[place] = odd
        alone = [problem for index, value in enumerate(values) for problem in check(value, f"a[{index}]")]
        assert list(list_of(check)(values, "a")) == alone
        named = dict(zip("xyz", values, strict=True))
        alone = [problem for key, value in named.items() for problem in check(value, f"a.{key}")]
        assert list(mapping_of(check)(named, "a")) == alone


def test_sums_that_overflow_hide_no_value() -> None:
    assert list(list_of(NUMBER)([LARGEST] * 9, "a")) == []
    assert list(list_of(NUMBER)([-LARGEST, math.inf], "a")) != []
