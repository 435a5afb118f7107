"""The user's modules, parsed but never imported."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import sysconfig
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.runtime.meaning import file_meaning
from segquant_bench.pipelines.runtime.own_code import add_working_folder, is_own
from segquant_bench.pipelines.runtime.provenance import PACKAGES

_INSTALLED = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib"))


def own_digest(*paths: str) -> str | None:
    """One hash of the user's code behind dotted paths, and of versions of the stack; None where all are ours."""
    lines = [f"{name}\0{file_meaning(path)}\n" for name, path in own_files(*paths).items()]
    # Torch has thousands of modules, diffusers a thousand: reading them takes from ten seconds to minutes.
    lines += [f"{name}=={version}\n" for name, version in sorted(filter(None, map(_stack, paths)))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16] if lines else None


def own_files(*paths: str) -> dict[str, Path]:
    """The user's modules behind dotted paths, with imports from their package or uninstalled ones beside it.

    Raises:
        PipelineError: a path to no Python file.
    """
    add_working_folder()
    found: dict[str, Path] = {}
    waiting = [_start(path) for path in paths if is_own(path) and _stack(path) is None]
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if name in found or path is None:
            continue
        found[name] = path
        waiting += [each for each in _imports(name, path) if _belongs(each, name)]
        waiting += list(_parents(name))
    return dict(sorted(found.items()))


def _stack(path: str) -> tuple[str, str] | None:
    """Distribution and version, where a path leads into a package of the stack, which is installed as a whole."""
    top = path.partition(".")[0]
    named = set(_distributions().get(top, ())) if is_own(path) else set()
    found = sorted(named.intersection(PACKAGES))
    return (found[0], importlib.metadata.version(found[0])) if found else None


@lru_cache(maxsize=1)
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def _start(path: str) -> str:
    for name in (path, *reversed(list(_parents(path)))):
        if _file(name) is not None:
            return name
    raise PipelineError(
        f"{path} is defined in no Python file, so that an edit could not be noticed; put it into a module of a package"
    )


def _parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:length]) for length in range(1, len(parts)))


def _file(name: str) -> Path | None:
    top, *rest = name.split(".")
    file, folders = _top(top)
    if not rest:
        return file
    for folder in folders:
        place = folder.joinpath(*rest)
        for candidate in (place / "__init__.py", place.with_name(f"{rest[-1]}.py")):
            if candidate.is_file():
                return candidate
    return None


def _top(name: str) -> tuple[Path | None, list[Path]]:
    """A top-level module's file, and a package's folders."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # __main__ has no spec
        return None, []
    if spec is None:
        return None, []
    folders = [Path(place).resolve() for place in spec.submodule_search_locations or ()]
    is_file = spec.has_location and spec.origin is not None and spec.origin.endswith(".py")
    return (Path(str(spec.origin)).resolve() if is_file else None), folders


def _belongs(name: str, importer: str) -> bool:
    top, own = name.partition(".")[0], importer.partition(".")[0]
    if top == own:
        return True
    root = _root(own)
    return root is not None and is_own(top) and _root(top) == root


def _root(top: str) -> Path | None:
    """The folder of a top-level module; None if installed or nowhere."""
    file, folders = _top(top)
    if not folders and file is None:
        return None
    root = folders[0].parent if folders else Path(str(file)).parent
    return None if any(root.is_relative_to(place) for place in _INSTALLED) else root


def _imports(name: str, path: Path) -> tuple[str, ...]:
    # A name that may be a module counts as one.
    stat = path.stat()
    return _read_imports(name, path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1024)
def _read_imports(name: str, path: Path, size: int, mtime_ns: int) -> tuple[str, ...]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
            found += [base, *(f"{base}.{alias.name}" for alias in node.names if alias.name != "*")]
    return tuple(dict.fromkeys(found))
