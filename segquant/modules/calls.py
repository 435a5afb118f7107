"""Run a model on a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from segquant.errors import QuantizationError

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total); total is 0 where it is not known."""


def call(model: nn.Module, batch: Any) -> Any:
    """Run the model on a dict of keyword arguments, a sequence, or one tensor."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, Sequence):
        return model(*batch)
    if isinstance(batch, Tensor):
        return model(batch)
    raise QuantizationError(
        f"a calibration batch is a {type(batch).__name__}; yield a dict of the forward's keyword "
        "arguments, a tuple of its positional ones, or a tensor"
    )
