"""The user's own code, found by dotted path and called; its errors become one sentence.

Paths come from command line or configuration only, never from other files.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import pkgutil
import sys
import traceback
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from segquant_bench.hints import nearest
from segquant_bench.pipelines.errors import PipelineError, one_line

log = logging.getLogger(__name__)

TARGET = "_target_"
OURS = ("segquant", "segquant_bench")
"""Top-level packages of this repository."""


def is_own(path: str) -> bool:
    """Whether a path leads out of this repository's packages."""
    return path.partition(".")[0] not in OURS


def add_working_folder() -> None:
    """Let packages in the working folder be imported, after installed ones."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def find(path: str, key: str) -> Any:
    """What a dotted path such as `their_pkg.methods.mine` names; `key` is for messages.

    Raises:
        PipelineError: it leads nowhere, or its module fails on import.
    """
    parts = path.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise PipelineError(f"{key}={path!r} is no dotted path; give for example {key}=their_pkg.module.name")
    add_working_folder()
    module, rest = _module(parts, f"{key}={path}")
    found: Any = module
    for part in rest:
        try:
            found = getattr(found, part)
        except AttributeError as error:
            name = module.__name__ if found is module else getattr(found, "__qualname__", repr(found))
            raise PipelineError(f"{key}={path}: {name} has no {part!r}; {nearest(part, _names(found))}") from error
    return found


def _module(parts: list[str], what: str) -> tuple[ModuleType, list[str]]:
    """A path's module, and the attributes left."""
    for length in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:length])
        try:
            return importlib.import_module(name), parts[length:]
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise PipelineError(f"{what}: importing {name} fails ({told(error)}); install what it needs") from error
        except Exception as error:  # whatever the user's module raises
            log.debug("importing %s", name, exc_info=error)
            raise PipelineError(f"{what}: importing {name} fails ({told(error)}); correct it") from error
    raise PipelineError(
        f"{what}: there is no package {parts[0]!r} here; install it, or set PYTHONPATH to the folder that holds it"
    )


def _names(found: Any) -> list[str]:
    modules = [each.name for each in pkgutil.iter_modules(getattr(found, "__path__", []))]
    return [*modules, *(name for name in dir(found) if not name.startswith("_"))]


def find_function(path: str, key: str) -> Callable[..., Any]:
    """As `find`, of something callable; else PipelineError."""
    found = find(path, key)
    if not callable(found):
        raise PipelineError(f"{key}={path} is a {type(found).__name__}, which cannot be called; name a function")
    return typing.cast("Callable[..., Any]", found)


def call(
    function: Callable[..., Any],
    values: Mapping[str, Any],
    section: str,
    path: str,
    given: Mapping[str, Any] | None = None,
) -> Any:
    """Call the user's function.

    Args:
        values: arguments from the configuration.
        given: further ones, passed if it takes them.

    Raises:
        PipelineError: a wrong or missing argument, or whatever it raises.
    """
    known = known_arguments(function)
    extra = {key: value for key, value in (given or {}).items() if known is None or key in known}
    for key in values:
        if key in extra:
            raise PipelineError(f"{section}.{key} is set by the benchmark for {path}; leave it out")
        if known is not None and key not in known:
            raise PipelineError(f"{path} takes no {key!r} ({section}.{key}); {nearest(key, known)}")
    arguments = {**values, **extra}
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise PipelineError(f"{path} cannot be called ({one_line(error)}); set {section}.ARGUMENT=VALUE") from error
    except ValueError:  # a function of C tells no signature
        pass
    try:
        return function(**arguments)
    except PipelineError as error:
        raise PipelineError(f"{path}: {one_line(error)}") from error
    except Exception as error:  # whatever the user's code raises
        log.debug("calling %s", path, exc_info=error)
        raise PipelineError(f"{path} fails ({told(error)}); correct it or its arguments") from error


def known_arguments(function: Callable[..., Any]) -> set[str] | None:
    """What a function takes, keys of `**common: Unpack[Common]` too; None if anything."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a function of C tells no signature
        return None
    named = {item.name for item in parameters if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)}
    for item in parameters:
        if item.kind is item.VAR_KEYWORD:
            keys = _unpacked(function, item.name)
            return None if keys is None else named | keys
    return named


def _unpacked(function: Callable[..., Any], name: str) -> set[str] | None:
    try:
        hint = typing.get_type_hints(function).get(name)
    except (NameError, TypeError, AttributeError):  # annotations that only type checkers can resolve
        return None
    if typing.get_origin(hint) is not typing.Unpack:
        return None
    (keys,) = typing.get_args(hint)
    return set(typing.get_type_hints(keys))


def told(error: Exception) -> str:
    """Type, message and place of an exception in the user's code."""
    message = f"{type(error).__name__}: {one_line(error)}".removesuffix(": ")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    return f"{message}, in line {frames[-1].lineno} of {Path(frames[-1].filename).name}" if frames else message


def _is_users(file: str) -> bool:
    if file.startswith("<") or "site-packages" in file:
        return False
    path = Path(file)
    homes = [Path(os.__file__).parent, *(folder for folder in map(_folder, OURS) if folder is not None)]
    return not any(path.is_relative_to(home) or path.resolve().is_relative_to(home) for home in homes)


def _folder(package: str) -> Path | None:
    module = sys.modules.get(package)
    return None if module is None or module.__file__ is None else Path(module.__file__).resolve().parent
