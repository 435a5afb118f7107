from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from segquant_bench.hints import nearest
from segquant_bench.pipelines.config.labels import PRESETS
from segquant_bench.pipelines.config.precision import register_precision, scheme_from, shipped_precisions
from segquant_bench.pipelines.config.schema import RunConfig
from segquant_bench.pipelines.config.target import PEERS
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.runtime import own_code
from segquant_bench.pipelines.runtime.own_code import TARGET

if TYPE_CHECKING:
    from segquant import Method
    from segquant_bench.pipelines.peers import Peer

KEY = f"quantizer.{TARGET}"
_FIELD = re.compile(r"[A-Za-z ]+: (\w+) is ")


def build_method(config: RunConfig) -> Method | Peer:
    """The method of a run.

    Raises:
        PipelineError: as `build_quantizer`; another tool for more than the denoiser in memory.
    """
    from segquant_bench.pipelines.peers import Peer  # imports torch: not for `segquant --help`

    register_precision(config.precision)
    method = build_quantizer(config.quantizer)
    if isinstance(method, Peer):
        config.check_whole(f"quantizer={config.quantizer_name}")
        config.check_alone()
        config.check_reference()
    return method


def check_one_precision(config: RunConfig) -> None:
    """PipelineError for a quantizer with another precision than the run's, under which its results would stand."""
    given = config.quantizer.get("precision", config.precision.name)
    if given != config.precision.name:
        raise PipelineError(
            f"quantizer.precision={given} is not the run's precision, {config.precision.name}, under which its results "
            f"would stand; set precision={given} and leave quantizer.precision out"
        )


def check_used(run: RunConfig) -> None:
    """PipelineError for formats of a run that quantizes nothing; a name alone is let through."""
    if run.is_float and run.precision.has_fields and run.precision.name not in shipped_precisions():
        from segquant.numerics.precisions import precision_name  # torch: not for `segquant --help`

        if run.precision.name == precision_name(scheme_from(run.precision)):
            raise PipelineError(
                f"quantizer=none leaves the model as it is, which does not go with the formats {run.precision.name}; "
                "leave precision.weight and precision.input out, or choose another quantizer"
            )


def build_quantizer(quantizer: Mapping[str, Any]) -> Method | Peer:
    """Call the function that a quantizer names.

    Raises:
        PipelineError: no such function, bad arguments, a refused precision, a missing tool, or no method returned.
    """
    target = str(quantizer[TARGET])
    arguments = {key: value for key, value in quantizer.items() if key not in (TARGET, "name")}
    if own_code.is_own(target):
        return _checked(own_code.call(own_code.find_function(target, KEY), arguments, "quantizer", target), target)
    package, _, function = target.rpartition(".")
    if package not in (PRESETS, PEERS):
        raise PipelineError(f"{KEY}={target} is no quantizer; it must name a function of {PRESETS} or {PEERS}")
    return _built(target, str(quantizer.get("name") or function), arguments)


def _built(target: str, name: str, arguments: Mapping[str, Any]) -> Method | Peer:
    from segquant.presets.settings import why_not  # torch: not for `segquant --help`

    package, _, function = target.rpartition(".")
    module = importlib.import_module(package)
    functions = [each for each in module.__all__ if _makes_method(getattr(module, each))]
    if function not in functions:
        raise PipelineError(f"{KEY}={target} is no function of {package}; {nearest(function, functions)}")
    preset = getattr(module, function)
    known = own_code.known_arguments(preset) or set()
    for key in arguments:
        if key not in known:
            raise PipelineError(f"quantizer.{key}: {why_not(name, key, known)}")
    try:
        method = preset(**arguments)
    except TypeError as error:
        raise PipelineError(f"quantizer={name}: {error}") from error
    except ValueError as error:
        raise PipelineError(_by_key(str(error), arguments)) from error
    return _checked(method, f"{package}.{function}")


def _makes_method(found: Any) -> bool:
    return inspect.isfunction(found) and "precision" in inspect.signature(found).parameters


def _by_key(message: str, arguments: Mapping[str, Any]) -> str:
    """What the library says of a part's field, with the key of the command line in its place."""
    found = _FIELD.match(message)
    return f"quantizer.{message[found.end() - len(found[1]) - 4 :]}" if found and found[1] in arguments else message


def _checked(made: Any, target: str) -> Method | Peer:
    # put off: who only reads a finished run's configuration needs no torch
    from segquant import Method
    from segquant_bench.pipelines.peers import Peer

    if not isinstance(made, Method | Peer):
        raise PipelineError(
            f"{KEY}={target} returned a {type(made).__name__}, which is no segquant.Method; set {KEY} to a function "
            f"that returns one, or a Peer of {PEERS}"
        )
    return made
