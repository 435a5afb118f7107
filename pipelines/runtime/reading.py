"""Files that stages keep for one another, read: what is damaged is told in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from segquant_bench.pipelines.errors import PipelineError, is_memory, one_line

DAMAGE = (
    SafetensorError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError,
    FileNotFoundError,
)  # fmt: skip
"""What code raises that is given values which it never wrote."""


@contextmanager
def reading(what: str, folder: Path) -> Iterator[None]:
    """PipelineError for whatever a damaged file makes the block raise, but for lack of memory."""
    try:
        yield
    except DAMAGE as error:
        if is_memory(error):
            raise
        raise PipelineError(
            f"{what} in {folder} cannot be read ({type(error).__name__}: {one_line(error)[:200]}); delete that folder, "
            "and the same command makes it again"
        ) from error
