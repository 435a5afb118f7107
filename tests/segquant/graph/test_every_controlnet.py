"""ControlNets: of every class, tiny, all layers are planned that its forward calls."""

from __future__ import annotations

import pytest

from tests.segquant.graph.denoisers.tiny_denoisers_controlnets import CONTROLNETS
from tests.segquant.graph.every_denoiser import (
    CLASSES,
    NOT_CAPTURED,
    TABLE,
    check_both_captures,
    check_planned,
    compared,
)

NAMES = CONTROLNETS


@pytest.mark.parametrize("name", sorted(NAMES))
def test_all_layers_are_planned(name: str, caplog: pytest.LogCaptureFixture) -> None:
    check_planned(name, caplog)


@pytest.mark.parametrize("name", compared(NAMES))
def test_both_captures_agree(name: str) -> None:
    check_both_captures(name)


def test_every_exported_class_is_in_a_table() -> None:
    """A class that a new diffusers brings fails here: give it a tiny configuration in tiny_denoisers_*.py."""
    assert set(CLASSES) == set(TABLE) | set(NOT_CAPTURED)
    assert not set(TABLE) & set(NOT_CAPTURED)
    assert len(NOT_CAPTURED) <= 3
    assert len(TABLE) > 100
