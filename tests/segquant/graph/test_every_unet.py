"""UNets, and transformers over sound, time, proteins: tiny, all layers are planned that their forward calls."""

from __future__ import annotations

import pytest

from tests.segquant.graph.denoisers.tiny_denoisers_other import OTHER
from tests.segquant.graph.denoisers.tiny_denoisers_unets import UNETS
from tests.segquant.graph.every_denoiser import check_both_captures, check_planned, compared

NAMES = OTHER | UNETS


@pytest.mark.parametrize("name", sorted(NAMES))
def test_all_layers_are_planned(name: str, caplog: pytest.LogCaptureFixture) -> None:
    check_planned(name, caplog)


@pytest.mark.parametrize("name", compared(NAMES))
def test_both_captures_agree(name: str) -> None:
    check_both_captures(name)
