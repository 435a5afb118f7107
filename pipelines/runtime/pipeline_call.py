"""Whatever a pipeline's call raises, in one sentence."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from segquant_bench.pipelines.errors import PipelineError, is_disk_full, is_memory, one_line

log = logging.getLogger(__name__)

_SHOWN = 300
"""Characters of a message in a sentence."""


class Stopped(Exception):
    """Base of what ends a pipeline's call on purpose."""


@contextmanager
def told_by_sentence(pipeline: Any) -> Iterator[None]:
    """PipelineError for every exception of the block, a call of `pipeline`.

    `Stopped`, errors that are sentences already, those of files, and lack of memory pass through.
    """
    try:
        yield
    except (PipelineError, Stopped, OSError):
        raise
    except Exception as error:
        if is_memory(error) or is_disk_full(error) or _is_told(error):
            raise
        name = type(pipeline).__name__
        log.debug("calling %s", name, exc_info=error)
        first = one_line((str(error).strip().splitlines() or [""])[0])[:_SHOWN]
        told = f"{type(error).__name__}: {first}" if first else type(error).__name__
        raise PipelineError(
            f"{name} fails while it samples ({told}); check model.call, model.pipeline and the files of the model"
        ) from error


def _is_told(error: Exception) -> bool:
    from segquant.errors import QuantizationError  # put off: only a failed call needs it

    return isinstance(error, QuantizationError)
