from __future__ import annotations

import dataclasses

import pytest

from segquant.errors import QuantizationError
from segquant.graph.segments import Segments


def test_nothing_known_is_the_default() -> None:
    assert Segments() == Segments(None, None, None, None)


def test_lists_become_tuples_and_input_activations_follow_activation() -> None:
    segments = Segments(output=[2, 3], input=[1, 4], activation="silu")  # type: ignore[arg-type]
    assert segments.output == (2, 3)
    assert segments.input == (1, 4)
    assert segments.input_activations == ("silu", "silu")
    assert hash(segments) == hash(Segments((2, 3), (1, 4), "silu"))


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Segments().output = (1, 2)  # type: ignore[misc]


@pytest.mark.parametrize("sizes", [(), (4,), (0, 4), (-1, 5), (2.0, 2), (True, 3)])
@pytest.mark.parametrize("side", ["output", "input"])
def test_sizes_that_are_no_cut(side: str, sizes: tuple[int, ...]) -> None:
    with pytest.raises(QuantizationError, match=f"an {side} cut needs two or more pieces"):
        Segments(**{side: sizes})


def test_activations_must_match_the_pieces() -> None:
    with pytest.raises(QuantizationError, match="2 input pieces but 3"):
        Segments(input=(1, 2), input_activations=(None, "gelu", None))
    with pytest.raises(QuantizationError, match="no input cut"):
        Segments(input_activations=("gelu",))
