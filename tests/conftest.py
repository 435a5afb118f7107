"""What tests of several rooms share."""

from __future__ import annotations

import pytest


@pytest.fixture
def untaught(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not imported segquant.deploy.diffusers."""
    from segquant.layers import saving  # torch: not for tests that do without

    for kind in saving._taught:
        monkeypatch.setattr(kind, saving.METHOD, getattr(kind, saving.METHOD).__wrapped__)
    monkeypatch.setattr(saving, "_taught", [])
