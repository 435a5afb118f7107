"""Transformers that make pictures: of every class, tiny, all layers are planned that its forward calls."""

from __future__ import annotations

import pytest

from tests.segquant.graph.denoisers.tiny_denoisers_flux import FLUX
from tests.segquant.graph.denoisers.tiny_denoisers_image import IMAGE
from tests.segquant.graph.denoisers.tiny_denoisers_image2 import IMAGE2
from tests.segquant.graph.every_denoiser import check_both_captures, check_planned, compared

NAMES = FLUX | IMAGE | IMAGE2


@pytest.mark.parametrize("name", sorted(NAMES))
def test_all_layers_are_planned(name: str, caplog: pytest.LogCaptureFixture) -> None:
    check_planned(name, caplog)


@pytest.mark.parametrize("name", compared(NAMES))
def test_both_captures_agree(name: str) -> None:
    check_both_captures(name)
