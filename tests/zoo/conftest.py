from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.zoo.in_use import InUse

FAMILIES = ["sd3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("flux", "sdxl", "canny"))]


@pytest.fixture(scope="session", params=FAMILIES)
def zoo(request: pytest.FixtureRequest) -> Iterator[InUse]:
    """A shipped pipeline, quantized once for all files."""
    yield InUse(request.param)
