"""Transformers that make videos: of every class, tiny, all layers are planned that its forward calls."""

from __future__ import annotations

import pytest

from tests.segquant.graph.denoisers.tiny_denoisers_video import VIDEO
from tests.segquant.graph.denoisers.tiny_denoisers_video2 import VIDEO2
from tests.segquant.graph.denoisers.tiny_denoisers_video3 import VIDEO3
from tests.segquant.graph.every_denoiser import check_both_captures, check_planned, compared

# One class asks for autocast to float32, which the CPU does not have.
pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")
NAMES = VIDEO | VIDEO2 | VIDEO3


@pytest.mark.parametrize("name", sorted(NAMES))
def test_all_layers_are_planned(name: str, caplog: pytest.LogCaptureFixture) -> None:
    check_planned(name, caplog)


@pytest.mark.parametrize("name", compared(NAMES))
def test_both_captures_agree(name: str) -> None:
    check_both_captures(name)
