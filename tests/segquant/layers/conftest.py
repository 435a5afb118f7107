"""What tests of layers share."""

from __future__ import annotations

import pytest

from segquant.layers import saving


@pytest.fixture
def untaught(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not imported segquant.deploy.diffusers."""
    for kind in saving._taught:
        monkeypatch.setattr(kind, saving.METHOD, getattr(kind, saving.METHOD).__wrapped__)
    monkeypatch.setattr(saving, "_taught", [])
