from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from segquant_bench.pipelines.errors import PipelineError, one_line

if TYPE_CHECKING:
    from torch import nn


def made_by(target: str) -> tuple[nn.Module, dict[str, Any] | None]:
    """What a user's MODULE:FUNCTION returns: a module, and its forward's keyword arguments or None.

    Raises:
        PipelineError: no such function, it fails, or no module.
    """
    # Put off: slow to import; bad input and --help do not wait for it.
    from torch import nn
    from torch.nn.parameter import is_lazy

    made = _called(_function(target), target)
    module, given = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, nn.Module) or not isinstance(given, Mapping | None):
        raise PipelineError(
            f"model.target={target} returned {type(made).__name__}; return an nn.Module, or the pair of an "
            "nn.Module and a dict of its forward's keyword arguments"
        )
    if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        raise PipelineError(
            f"model.target={target} returned a {type(module).__name__} with lazy layers, whose sizes are not known "
            "yet; call it once in that function"
        )
    return module.eval(), None if given is None else dict(given)


def _function(target: str) -> Callable[[], Any]:
    name, _, attribute = target.partition(":")
    if not all(part.isidentifier() for part in [*name.split("."), attribute]):
        raise PipelineError(f"model.target={target!r} is no MODULE:FUNCTION; give for example my.module:build")
    if os.getcwd() not in sys.path:  # a console script's path lacks the folder that it is called in
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise PipelineError(f"model.target={target}: {name} cannot be imported ({one_line(error)})") from error
    except Exception as error:  # whatever the user's code raises
        raise PipelineError(f"model.target={target}: importing {name} fails ({_told(error)}); correct it") from error
    if not hasattr(module, attribute):
        raise PipelineError(f"model.target={target}: {name} has no {attribute!r}")
    found = getattr(module, attribute)
    if not inspect.isroutine(found) and not inspect.isclass(found):
        raise PipelineError(
            f"model.target={target}: {attribute} is a {type(found).__name__}, no function; give a function without "
            "arguments that returns an nn.Module"
        )
    return found


def _called(function: Callable[[], Any], target: str) -> Any:
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise PipelineError(
            f"model.target={target}: it is called without arguments and wants some ({one_line(error)}); give them "
            "defaults"
        ) from error
    except ValueError:  # a function of C tells no signature
        pass
    try:
        return function()
    except Exception as error:  # whatever the user's code raises
        raise PipelineError(f"model.target={target} fails ({_told(error)}); correct it") from error


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}".removesuffix(": ")
