"""Capture one flat graph: recorded on fake tensors, else exported."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from segquant.errors import QuantizationError, first_line
from segquant.graph.capture.calls import Capture
from segquant.graph.capture.copies import device_of
from segquant.graph.capture.export import exported
from segquant.graph.capture.failure import check_arguments, check_shapes, failure_message
from segquant.graph.capture.record import recorded

logger = logging.getLogger(__name__)


def capture(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Capture:
    """The graph of `model(*args, **kwargs)`; the model is not touched.

    Raises:
        QuantizationError: the arguments do not fit, or both ways fail; names class, argument and cause.
    """
    check_shapes(model)
    check_arguments(model, args, kwargs)
    with _quiet():
        return _captured(model, args, kwargs, device_of(model, (args, kwargs)))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def _captured(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], device: torch.device) -> Capture:
    try:
        return recorded(model, args, kwargs, device)
    except Exception as error:
        # Anything may come out of another one's forward; it is raised below unless torch.export gets through.
        refused = error
    try:
        found = exported(model, args, kwargs, device)
    except Exception as error:
        logger.debug("%s: torch.export does not take it either: %s", type(model).__name__, first_line(error))
        if isinstance(refused, QuantizationError):
            raise refused from None
        raise QuantizationError(failure_message(model, args, kwargs, device, refused)) from refused
    logger.info(
        "%s: its operators could not be recorded (%s: %s); it was exported instead",
        type(model).__name__,
        type(refused).__name__,
        first_line(refused),
    )
    return found
