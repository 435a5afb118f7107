"""From a model to one flat graph of operators: exported where torch.export takes it, else recorded."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from segquant.errors import QuantizationError
from segquant.graph_calls import Capture
from segquant.graph_copy import device_of
from segquant.graph_export import exported
from segquant.graph_failure import check_arguments, failure_message, first_line
from segquant.graph_record import recorded

logger = logging.getLogger(__name__)


def capture(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Capture:
    """The graph of `model` called with `args` and `kwargs`; the model itself is not touched.

    Raises:
        QuantizationError: the arguments do not fit the forward's signature, or neither way of capturing gets
            through; the message names the model's class, the argument and the cause.
    """
    check_arguments(model, args, kwargs)
    device = device_of(model, (args, kwargs))
    try:
        return exported(model, args, kwargs, device)
    except Exception as error:
        # Anything may come out of another one's forward; what is unexpected comes again below, and is raised.
        refused = error
    try:
        found = recorded(model, args, kwargs, device)
    except QuantizationError:
        raise
    except Exception as error:
        raise QuantizationError(failure_message(model, args, kwargs, device, error)) from error
    logger.info(
        "%s: torch.export does not take it (%s: %s); its operators were recorded instead",
        type(model).__name__,
        type(refused).__name__,
        first_line(refused),
    )
    return found
