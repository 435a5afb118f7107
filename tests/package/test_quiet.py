"""Lines about an absent GPU are dropped, and nothing else of those packages."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from segquant_bench.pipelines.runtime.quiet import NOT_OURS, quieten_absent_gpu


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    filters = {name: logging.getLogger(name).filters[:] for name in NOT_OURS}
    yield
    for name, before in filters.items():
        logging.getLogger(name).filters[:] = before


def test_only_the_known_lines_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    handler = caplog.handler  # torch's loggers do not hand records on to the root
    quieten_absent_gpu()
    quieten_absent_gpu()
    for name, words in NOT_OURS.items():
        logger = logging.getLogger(name)
        assert len(logger.filters) >= 1
        logger.addHandler(handler)
        try:
            with caplog.at_level(logging.WARNING, logger=name):  # other tests make diffusers quiet
                for each in words:
                    logger.warning("before %s after", each)
                logger.warning("something else of %s", name)
        finally:
            logger.removeHandler(handler)
    assert {record.getMessage() for record in caplog.records} == {f"something else of {name}" for name in NOT_OURS}


def test_twice_is_once() -> None:
    quieten_absent_gpu()
    counts = {name: len(logging.getLogger(name).filters) for name in NOT_OURS}
    quieten_absent_gpu()
    assert {name: len(logging.getLogger(name).filters) for name in NOT_OURS} == counts
