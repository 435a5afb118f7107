"""Sizes by trials, against models whose right sizes are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from segquant.deploy.onnx.trials import Free, Sizes, Verdict, sizes_of

BATCH, HEIGHT, WIDTH, LENGTH = ((4, 0),), ((4, 2),), ((4, 3),), ((3, 1),)


def _trial(
    symbols: list[Free], runs: Callable[[Mapping[str, int]], bool], right: Callable[[Mapping[str, int]], bool]
) -> Callable[[Mapping[str, int]], Verdict]:
    example = {each.name: each.size for each in symbols}

    def trial(sizes: Mapping[str, int]) -> Verdict:
        given = {**example, **sizes}
        return Verdict.SILENT if not runs(given) else Verdict.RIGHT if right(given) else Verdict.WRONG

    return trial


def _one(size: int, runs: Callable[[int], bool], right: Callable[[int], bool], low: int = 2) -> Sizes:
    symbols = [Free("s", size, low, None, LENGTH)]
    return sizes_of(symbols, _trial(symbols, lambda x: runs(x["s"]), lambda x: right(x["s"])))["s"]


@pytest.mark.parametrize("multiple", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("raises", [True, False])
@pytest.mark.parametrize("times", [1, 2, 3, 5, 6])
def test_multiples_whether_the_model_raises_or_the_graph_differs(multiple: int, raises: bool, times: int) -> None:
    def fits(size: int) -> bool:
        return size % multiple == 0

    found = _one(multiple * times, fits if raises else lambda size: True, fits)
    assert not found.fixed and found.step == multiple


@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("size", range(4, 40))
def test_a_table_of_the_examples_tokens_fixes_the_size(patch: int, size: int) -> None:
    """Sizes beside it are right where a patch's rest is cut off: no size is free for that."""
    found = _one(size, lambda other: other >= patch, lambda other: other // patch == size // patch)
    assert found.fixed


@pytest.mark.parametrize("most", [12, 13, 17])
def test_a_table_that_ends_above_the_example(most: int) -> None:
    found = _one(12, lambda size: size <= most, lambda size: True)
    assert (found.fixed, found.step, found.least) == (False, 1, 1)


def test_the_least_size() -> None:
    assert _one(6, lambda size: True, lambda size: size > 1).least is None
    assert _one(6, lambda size: True, lambda size: size > 3, low=5).least == 4
    assert _one(6, lambda size: True, lambda size: True, low=9).least is None  # the model's own


def test_lengths_that_change_together_have_one_name() -> None:
    """As FLUX's tokens and their places: (3, 1) beside (2, 0), of pictures and of words, here of one size."""
    symbols = [
        Free("image", 16, 2, None, LENGTH),
        Free("words", 16, 2, None, LENGTH),
        Free("image_ids", 16, 2, None, ((2, 0),)),
        Free("word_ids", 16, 2, None, ((2, 0),)),
    ]
    trial = _trial(symbols, lambda x: x["image"] == x["image_ids"] and x["words"] == x["word_ids"], lambda x: True)
    found = sizes_of(symbols, trial)
    assert {name: each.name for name, each in found.items()} == {
        "image": "image", "image_ids": "image", "words": "words", "word_ids": "words"
    }  # fmt: skip
    assert all(each.step == 1 and not each.fixed and each.least == 1 for each in found.values())


@pytest.mark.parametrize("ties", [2, 3, 4, 6])
def test_batches_that_change_together(ties: int) -> None:
    symbols = [Free(f"b{number}", 2, 2, 63, BATCH) for number in range(ties)]
    found = sizes_of(symbols, _trial(symbols, lambda x: len(set(x.values())) == 1, lambda x: True))
    assert {each.name for each in found.values()} == {"b0"} and {each.least for each in found.values()} == {1}


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 12), (12, 8), (16, 6)])
@pytest.mark.parametrize("odd", [True, False])
def test_heights_of_residuals_follow_the_pictures(height: int, width: int, odd: bool) -> None:
    """As a UNet's residuals of a ControlNet: of the whole height, and of the half, rounded up."""
    symbols = [
        Free("h", height, 2, None, HEIGHT), Free("w", width, 2, None, WIDTH),
        Free("h1", height, 2, None, HEIGHT), Free("w1", width, 2, None, WIDTH),
        Free("h2", height // 2, 2, None, HEIGHT), Free("w2", width // 2, 2, None, WIDTH),
    ]  # fmt: skip

    def runs(x: Mapping[str, int]) -> bool:
        return all(x[s] == x[f"{s}1"] and -(-x[s] // 2) == x[f"{s}2"] for s in "hw")

    found = sizes_of(symbols, _trial(symbols, runs, lambda x: odd or (x["h"] % 2 == 0 and x["w"] % 2 == 0)))
    assert not any(each.fixed for each in found.values())
    assert (found["h"].name, found["h1"].name, found["h2"].name) == ("h", "h", "h2")
    assert [found[name].step for name in ("h", "w", "h2", "w2")] == ([1, 1, 1, 1] if odd else [2, 2, 1, 1])


def test_what_the_model_never_takes_otherwise() -> None:
    symbols = [Free("width", 128, 2, 256, ((2, 1),)), Free("rows", 6, 2, None, ((2, 0),))]
    found = sizes_of(symbols, _trial(symbols, lambda x: x == {"width": 128, "rows": 6}, lambda x: True))
    assert found == {"width": Sizes("width", fixed=True), "rows": Sizes("rows")}


def test_sizes_that_are_right_alone_and_wrong_together() -> None:
    symbols = [Free("h", 8, 2, None, HEIGHT), Free("w", 8, 2, None, WIDTH)]
    found = sizes_of(symbols, _trial(symbols, lambda x: True, lambda x: 8 in (x["h"], x["w"])))
    assert not found["h"].fixed and found["w"].fixed


def test_no_trial_is_made_twice_and_large_sizes_are_not_doubled() -> None:
    symbols = [Free("tokens", 4096, 2, None, LENGTH), Free("ids", 4096, 2, None, ((2, 0),))]
    tried: list[Mapping[str, int]] = []

    def trial(sizes: Mapping[str, int]) -> Verdict:
        tried.append(dict(sizes))
        return Verdict.RIGHT if len(sizes) == 2 else Verdict.SILENT

    assert sizes_of(symbols, trial)["ids"] == Sizes("tokens", 1)
    assert len({tuple(each.items()) for each in tried}) == len(tried) < 20
    assert max(max(each.values()) for each in tried if len(each) == 2) == 4098
