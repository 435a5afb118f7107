"""From configuration to what segquant and eval take, refused early where they would refuse it late."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from segquant_bench.pipelines.config.schema import RunConfig
from segquant_bench.pipelines.errors import PipelineError, nearest

if TYPE_CHECKING:
    from segquant import Method
    from segquant_bench.pipelines.peers import Peer


def build_method(config: RunConfig) -> Method | Peer:
    """The method of a run; see `build_quantizer`."""
    return build_quantizer(config.quantizer)


def build_quantizer(quantizer: Mapping[str, Any]) -> Method | Peer:
    """Call the function that a quantizer configuration names: a preset, or another tool's quantizer.

    Raises:
        PipelineError: a value that it refuses, a precision that it cannot do, a tool that is not installed, or no
            such function.
    """
    arguments = {key: value for key, value in quantizer.items() if key not in ("_target_", "name")}
    package, _, function = str(quantizer["_target_"]).rpartition(".")
    name = quantizer.get("name") or function
    preset = getattr(importlib.import_module(package), function, None)
    if preset is None:
        raise PipelineError(f"{package}.{function} does not exist; choose one of conf/quantizer")
    known = quantizer_keys(preset)
    for key in arguments:
        if key not in known:
            raise PipelineError(f"{name} takes no {key!r} (quantizer.{key}); {nearest(key, known)}")
    try:
        method = preset(**arguments)
    except TypeError as error:
        raise PipelineError(f"quantizer={name}: {error}") from error
    except ValueError as error:
        raise PipelineError(str(error)) from error
    return _checked(method, f"{package}.{function}")


def _checked(method: object, called: str) -> Method | Peer:
    # Put off: who only reads a finished run's configuration needs no torch.
    from segquant import Method
    from segquant_bench.pipelines.peers import Peer

    if not isinstance(method, Method | Peer):
        raise PipelineError(
            f"{called} returned a {type(method).__name__}, no segquant.Method; set quantizer._target_ to a function "
            "that returns one"
        )
    return method


def quantizer_keys(preset: Callable[..., Any]) -> set[str]:
    """Names of everything that a preset takes."""
    # Put off: who only reads a finished run's configuration needs no torch.
    from segquant import presets

    parameters = inspect.signature(preset).parameters.values()
    own = {item.name for item in parameters if item.kind is not item.VAR_KEYWORD}
    return own | set(presets.Common.__annotations__) if len(own) < len(parameters) else own
