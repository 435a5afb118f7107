"""Which runs have comparable bytes, and in which order they stand."""

from __future__ import annotations

import itertools
import random

import pytest

from segquant_bench.eval.report.runs.groups import group_key
from segquant_bench.eval.report.runs.sizes import by_bytes, bytes_ratio, is_comparable, is_no_larger, size_letters
from tests.eval.report.support import run


@pytest.mark.parametrize(
    ("ours", "theirs", "comparable", "no_larger"),
    [(100, 100, True, True), (102, 100, True, True), (103, 100, False, False), (100, 103, False, True),
     (100, 102, True, True), (1, 100, False, True)],
)  # fmt: skip
def test_two_percent_of_the_smaller(ours: int, theirs: int, comparable: bool, no_larger: bool) -> None:
    ratio = bytes_ratio(run(0, "a", weight_bytes=ours), run(1, "b", weight_bytes=theirs))
    assert (is_comparable(ratio), is_no_larger(ratio)) == (comparable, no_larger)


def test_unknown_bytes_are_comparable_with_none() -> None:
    ratio = bytes_ratio(run(0, "a", weight_bytes=None), run(1, "b"))
    assert ratio is None and not is_comparable(ratio) and not is_no_larger(ratio)


@pytest.mark.parametrize("seed", range(20))
def test_letters_are_shared_by_comparable_runs_and_no_others(seed: int) -> None:
    generator = random.Random(seed)
    sizes = [generator.randint(1000, 1000 + 40 * seed) for _ in range(generator.randint(1, 60))]
    runs = [
        run(job, f"m{job}", weight_bytes=size, precision=generator.choice(("w8a8", "w4a8")))
        for job, size in enumerate(sizes)
    ]
    letters = {key: set(told.split()) for key, told in size_letters(runs).items()}
    for ours, theirs in itertools.combinations(runs, 2):
        if group_key(ours) == group_key(theirs):
            shared = bool(letters[id(ours)] & letters[id(theirs)])
            assert shared == is_comparable(bytes_ratio(ours, theirs))


def test_letters_go_up_with_bytes_and_lone_runs_have_none() -> None:
    sizes = (1000, 1015, 1030, 2000, None)
    runs = [run(job, f"m{job}", weight_bytes=size) for job, size in enumerate(sizes)]
    assert list(size_letters(runs).values()) == ["a", "a b", "b", "", ""]
    assert size_letters([run(0, "none"), run(1, "none")]).keys() and set(size_letters([run(0, "none")]).values()) == {
        ""
    }


def test_rows_go_by_bytes_within_their_group() -> None:
    runs = [
        run(0, "none", weight_bytes=9000), run(1, "b", weight_bytes=30), run(2, "c", weight_bytes=None),
        run(3, "a", weight_bytes=10), run(4, "d", weight_bytes=30), run(5, "e", weight_bytes=1, precision="w4a8"),
    ]  # fmt: skip
    assert [each.quantizer for each in by_bytes(runs)] == ["none", "a", "b", "d", "c", "e"]
