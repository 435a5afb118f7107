from __future__ import annotations

from itertools import accumulate

import pytest

from segquant import presets
from segquant.errors import QuantizationError
from segquant.graph.control_cuts import random_cuts, wrong_cuts
from segquant.graph.segments import Segments
from segquant.method.targets import control_cuts

ADALN = Segments(output=(64,) * 6, activation="silu")
MIXED = Segments(input=(64, 192), input_activations=(None, "gelu"))


def _places(sizes: tuple[int, ...] | None) -> set[int]:
    return set(accumulate((sizes or ())[:-1]))


@pytest.mark.parametrize("seed", range(8))
def test_random_cuts_keep_number_and_width_and_avoid_the_graphs_places(seed: int) -> None:
    found = random_cuts(ADALN, seed)
    assert found == random_cuts(ADALN, seed)
    assert len(found.output or ()) == 6 and sum(found.output or ()) == 384
    assert not _places(found.output) & _places(ADALN.output)
    assert found.activation == "silu" and found.input is None


def test_random_cuts_are_uniform_over_the_other_places() -> None:
    segments = Segments(output=(2, 3))
    drawn = [random_cuts(segments, seed).output for seed in range(3000)]
    for sizes in ((1, 4), (3, 2), (4, 1)):
        assert drawn.count(sizes) == pytest.approx(1000, abs=130)  # five standard deviations
    assert (2, 3) not in drawn


def test_random_cuts_take_the_graphs_places_only_when_no_others_are_left() -> None:
    assert random_cuts(Segments(output=(1, 1, 1)), 0).output == (1, 1, 1)
    found = random_cuts(Segments(output=(1, 1, 2)), 0).output
    assert len(found or ()) == 3 and 3 in _places(found)


def test_wrong_cuts_have_one_piece_more_as_equal_as_can_be() -> None:
    found = wrong_cuts(ADALN).output
    assert found is not None and len(found) == 7 and sum(found) == 384 and max(found) - min(found) == 1
    assert wrong_cuts(Segments(output=(1, 1, 1))).output == (1, 2)
    assert wrong_cuts(Segments(output=(1, 1))).output is None


@pytest.mark.parametrize("cut", [lambda s: random_cuts(s, 3, multiple=32), lambda s: wrong_cuts(s, multiple=32)])
def test_input_pieces_are_multiples_of_the_group(cut) -> None:
    found = cut(MIXED)
    assert found.input is not None and sum(found.input) == 256 and all(size % 32 == 0 for size in found.input)
    assert found.input != MIXED.input
    with pytest.raises(QuantizationError, match="multiples of 48"):
        random_cuts(MIXED, 0, multiple=48)


def test_a_new_piece_has_an_activation_only_if_all_of_it_has_it() -> None:
    found = wrong_cuts(MIXED)  # 85 | 85 | 86, the graph's border at 64
    assert found.input == (85, 85, 86) and found.input_activations == (None, "gelu", "gelu")
    same = random_cuts(Segments(input=(8, 8), activation="gelu"), 1)
    assert same.input_activations == ("gelu", "gelu")
    assert wrong_cuts(Segments(input=(1, 1), activation="silu")) == Segments(activation="silu")
    assert wrong_cuts(Segments(input=(1, 1), input_activations=(None, "silu"))) == Segments()


@pytest.mark.parametrize("segments", [Segments(), Segments(activation="gelu")])
def test_what_the_graph_does_not_cut_stays_uncut(segments: Segments) -> None:
    assert random_cuts(segments, 0) == segments == wrong_cuts(segments)


@pytest.mark.parametrize("control", ["random", "wrong"])
def test_pieces_hold_whole_super_blocks(control: str) -> None:
    """Groups of 32 would fit other places, but 256 weights share a scale of scales."""
    segments, method = {"a": Segments(input=(512, 256, 1280))}, presets.rtn("q4_k", seglinear=True, cuts=control)
    cut = control_cuts(segments, {"a": method})["a"].input
    assert cut is not None and cut != segments["a"].input and sum(cut) == 2048
    assert all(size % 256 == 0 for size in cut)
