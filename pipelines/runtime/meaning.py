"""Hashes of what source code does."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.runtime.paths import HOME

OURS = ("pipelines", "eval")
"""First parts of names that mean folders of the benchmark; any other one is an importable package."""
BARS = "segquant_bench.bars"
"""Its `tqdm` moves no number: code that took tqdm's own has the same meaning, and stages of then are found again."""


def code_digest(*names: str) -> str:
    """One hash of the meaning of dotted modules and whole packages; nothing is imported.

    Raises:
        PipelineError: a name without any Python file.
    """
    whole = hashlib.sha256()
    for name in sorted(set(names)):
        for part, path in source_files(name):
            whole.update(f"{part}\0{file_meaning(path)}\n".encode())
    return whole.hexdigest()[:16]


def source_files(name: str) -> Iterator[tuple[str, Path]]:
    """Dotted name and file of every module that a name means."""
    top, *rest = name.split(".")
    folder = _top_folder(top)
    if folder is not None:
        path = folder.joinpath(*rest)
        if path.is_dir():
            files = sorted(path.rglob("*.py"))
            yield from ((".".join((name, *file.relative_to(path).with_suffix("").parts)), file) for file in files)
            if files:
                return
        elif (file := path.with_suffix(".py")).is_file():
            yield name, file
            return
    raise PipelineError(f"there is no Python code {name!r}, which a stage names; correct the stage's `code`")


def _top_folder(top: str) -> Path | None:
    if top in OURS:
        return HOME / top
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return None if spec.origin is None else Path(spec.origin).with_suffix("")


def file_meaning(path: Path) -> str:
    path = path.resolve()
    stat = path.stat()
    return _file_meaning(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=2048)
def _file_meaning(path: Path, size: int, mtime_ns: int) -> str:
    return source_meaning(path.read_text(encoding="utf-8"))


def source_meaning(source: str) -> str:
    """Hash of a syntax tree without comments, docstrings, `if TYPE_CHECKING` and idle annotations."""
    tree = _Stripped().visit(ast.parse(source))
    return hashlib.sha256(ast.dump(tree, annotate_fields=False).encode()).hexdigest()


class _Stripped(ast.NodeTransformer):
    def __init__(self) -> None:
        self._in_class = False
        self._decorated = False

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if _is_text(node.value) else self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        if node.module == BARS and [alias.name for alias in node.names] == ["tqdm"]:
            node.module = "tqdm"
        return node

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt] | None:
        if not _is_type_checking(node.test):
            return self.generic_visit(node)
        return [found for item in node.orelse for found in _listed(self.visit(item))]

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._inside(node, is_class=True)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._function(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        if not self._decorated:
            node.annotation = None
        return node

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        outside, self._decorated = self._decorated, any(map(_reads_annotations, node.decorator_list))
        if not self._decorated:
            node.returns = None
        try:
            return self._inside(node, is_class=False)
        finally:
            self._decorated = outside

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if self._in_class:
            return self.generic_visit(node)
        if node.value is None:
            return None
        return ast.Assign([node.target], self.visit(node.value))

    def _inside(self, node: ast.AST, *, is_class: bool) -> ast.AST:
        outside, self._in_class = self._in_class, is_class
        try:
            return self.generic_visit(node)
        finally:
            self._in_class = outside


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_type_checking(node: ast.AST) -> bool:
    return (isinstance(node, ast.Name) and node.id == "TYPE_CHECKING") or (
        isinstance(node, ast.Attribute) and node.attr == "TYPE_CHECKING"
    )


def _reads_annotations(decorator: ast.expr) -> bool:
    """functools.singledispatch: `@f.register` chooses by them."""
    return isinstance(decorator, ast.Attribute) and decorator.attr == "register"


def _listed(found: Any) -> list[ast.stmt]:
    if found is None:
        return []
    return list(found) if isinstance(found, list) else [found]
