"""Which modules of the user's package a piece of code is made of: the one that defines it, and what that imports."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.runtime.own_code import is_own

_INSTALLED = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib"))


def module_of(found: Any) -> str:
    """The module that defines a function, a class or an object's class."""
    function = inspect.unwrap(found) if callable(found) else found
    while hasattr(function, "func"):  # functools.partial
        function = function.func
    name = getattr(function, "__module__", None) or type(function).__module__
    return str(name)


def own_files(*modules: str) -> dict[str, Path]:
    """Name and file of modules of the user's and of all that they import of it; nothing further is imported.

    Followed are imports of the same top-level package, and of others that lie beside it unless it is installed.
    Modules of this repository give none: their code is in the keys of stages already.

    Raises:
        PipelineError: a module that has no Python file, so that an edit of it could not be noticed.
    """
    found: dict[str, Path] = {}
    waiting = [name for name in modules if is_own(name)]
    for name in waiting:
        if _file(name) is None:
            raise PipelineError(
                f"{name} is no Python file, so that an edit of it could not be noticed; put what the configuration "
                "names into a module of your package"
            )
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if name in found or path is None:
            continue
        found[name] = path
        waiting += [each for each in _imports(name, path) if _belongs(each, name)]
        waiting += [".".join(name.split(".")[:length]) for length in range(1, name.count(".") + 1)]
    return dict(sorted(found.items()))


def _spec(name: str) -> importlib.machinery.ModuleSpec | None:
    module = sys.modules.get(name)
    if module is not None:
        return getattr(module, "__spec__", None)
    parent = name.rpartition(".")[0]
    if parent and parent not in sys.modules:  # finding it would import its parents
        return None
    try:
        return importlib.util.find_spec(name)
    except (ImportError, AttributeError, ValueError):
        return None


def _file(name: str) -> Path | None:
    """The Python file of a module; None for what has none (namespace packages, extensions) or is not there."""
    spec = _spec(name)
    if spec is None or not spec.has_location or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin).resolve()


def _belongs(name: str, importer: str) -> bool:
    """Whether an imported module is the user's own code too."""
    top, own = name.partition(".")[0], importer.partition(".")[0]
    if top == own:
        return True
    root, path = _root(own), _file(top)
    return is_own(top) and path is not None and root is not None and path.is_relative_to(root)


@lru_cache(maxsize=64)
def _root(top: str) -> Path | None:
    """The folder beside which a top-level package's neighbours lie; None if it is installed."""
    spec = _spec(top)
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or ())
    start = Path(places[0]) if places else Path(str(spec.origin))
    root = start.resolve().parent
    return None if any(root == place or root.is_relative_to(place) for place in _INSTALLED) else root


def _imports(name: str, path: Path) -> Iterator[str]:
    """Modules that a file imports, wherever in it; names that may be attributes or modules count as modules."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")
