"""Precisions of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from segquant_bench.pipelines.config.sections import PrecisionConfig
from segquant_bench.pipelines.errors import PipelineError, one_line
from segquant_bench.pipelines.runtime import own_code
from segquant_bench.pipelines.runtime.own_code import TARGET

if TYPE_CHECKING:
    from segquant import QuantScheme

KEY = f"precision.{TARGET}"


def register_precision(config: PrecisionConfig) -> QuantScheme | None:
    """Make one's own precision known for this process; None for one of segquant's.

    Raises:
        PipelineError: unknown fields, a failing function, no scheme, or a name taken.
    """
    if not config.is_own:
        return None
    import segquant  # torch: not for `segquant --help`

    scheme = _scheme(config)
    try:
        segquant.register(scheme, name=config.name)
    except ValueError as error:
        raise PipelineError(f"precision {config.name}: {one_line(error)}; set precision.name=NAME") from error
    return scheme


def _scheme(config: PrecisionConfig) -> QuantScheme:
    from segquant import QuantScheme

    if config._target_ is None:
        try:
            return QuantScheme.from_dict({"weight": config.weight, "input": config.input})
        except (TypeError, ValueError) as error:
            raise PipelineError(f"precision {config.name}: {one_line(error)}") from error
    function = own_code.find_function(config._target_, KEY)
    made: Any = own_code.call(function, config.arguments, "precision.arguments", config._target_)
    if not isinstance(made, QuantScheme):
        raise PipelineError(
            f"{KEY}={config._target_} returned {type(made).__name__}; return a segquant.QuantScheme(weight, input)"
        )
    return made
