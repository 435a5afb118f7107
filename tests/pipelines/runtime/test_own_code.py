"""Code of the user's own package: found, called, refused in one sentence; and which of its modules count."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.runtime import own_code, own_modules

PACKAGE = {
    "__init__.py": "",
    "methods.py": """
        from typing import TypedDict, Unpack
        from their_lab.helper import double
        VALUE = 3
        class Common(TypedDict, total=False):
            seed: int
        class Kind:
            def made(self): ...
        def mine(steps, *, power=1): return double(steps) ** power
        def strict(**common: Unpack[Common]): return common
        def loose(**anything): return anything
        def needs(path): return path
        def broken():
            return {}["x"]
        """,
    "helper.py": "import other_lab\nfrom . import deep\ndef double(x): return 2 * x",
    "deep.py": "def slow():\n    from .late import x\n    return x",
    "late.py": "x = 1",
    "unused.py": "raise RuntimeError('never imported')",
    "fails.py": "\n\nraise ValueError('no weights')",
    "wants.py": "import a_package_that_nobody_has",
    "typo.py": "def f(:",
}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """`their_lab` and its neighbour `other_lab` in the working folder, which is not on Python's path."""
    import textwrap

    (tmp_path / "their_lab").mkdir()
    for name, text in PACKAGE.items():
        (tmp_path / "their_lab" / name).write_text(textwrap.dedent(text))
    (tmp_path / "other_lab.py").write_text("import json\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path / "their_lab"
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("their_lab", "other_lab"):
            del sys.modules[name]


def test_a_path_is_found_in_the_working_folder(lab: Path) -> None:
    assert own_code.find("their_lab.methods.VALUE", "key") == 3
    assert own_code.find("their_lab.methods.Kind.made", "key").__name__ == "made"
    assert own_code.find_function("their_lab.methods.mine", "key")(2, power=2) == 16
    assert sys.path[-1] == str(lab.parent)  # behind everything that is installed


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("mine", "no dotted path"),
        ("their_lab..mine", "no dotted path"),
        ("their_lab.methods:mine", "no dotted path"),
        ("no_such_lab.mine", "no package 'no_such_lab'"),
        ("their_lab.method.mine", "their_lab has no 'method'; did you mean 'methods'"),
        ("their_lab.methods.mime", "their_lab.methods has no 'mime'; did you mean 'mine'"),
        ("their_lab.methods.Kind.mode", "Kind has no 'mode'; did you mean 'made'"),
        ("their_lab.fails.x", r"importing their_lab.fails fails \(ValueError: no weights, in line 3 of fails.py"),
        ("their_lab.wants.x", "No module named 'a_package_that_nobody_has'.*install what it needs"),
        ("their_lab.typo.x", "SyntaxError"),
    ],
)
def test_what_cannot_be_found(lab: Path, path: str, words: str) -> None:
    with pytest.raises(PipelineError, match=words) as caught:
        own_code.find(path, "quantizer._target_")
    assert "quantizer._target_=" in str(caught.value) and "\n" not in str(caught.value)


def test_what_cannot_be_called(lab: Path) -> None:
    with pytest.raises(PipelineError, match="is a int, which cannot be called"):
        own_code.find_function("their_lab.methods.VALUE", "key")


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("mine", {"powr": 1}, r"takes no 'powr' \(part.powr\); did you mean 'power'"),
        ("mine", {"steps": 1}, "part.steps is set by the benchmark"),
        ("needs", {}, r"cannot be called \(missing a required argument: 'path'\); set part.ARGUMENT"),
        ("strict", {"sead": 1}, "takes no 'sead'.*'seed'"),
        ("broken", {}, r"fails \(KeyError: 'x', in line 1\d of methods.py\)"),
    ],
)
def test_calls_that_go_wrong(lab: Path, name: str, values: dict[str, int], words: str) -> None:
    path = f"their_lab.methods.{name}"
    with pytest.raises(PipelineError, match=words):
        own_code.call(own_code.find(path, "key"), values, "part", path, {"steps": 4})


def test_calls_that_go_well(lab: Path) -> None:
    def call(name: str, **values: int) -> object:
        path = f"their_lab.methods.{name}"
        return own_code.call(own_code.find(path, "key"), values, "part", path, {"steps": 4})

    assert call("mine", power=2) == 64
    assert call("strict", seed=1) == {"seed": 1}
    assert call("loose", x=1) == {"x": 1, "steps": 4}


NAMES = {"their_lab", "their_lab.methods", "their_lab.helper", "their_lab.deep", "their_lab.late", "other_lab"}


def test_modules_that_count_are_those_that_are_imported(lab: Path) -> None:
    found = own_modules.own_files("their_lab.methods.Kind.made")
    assert found.keys() == NAMES
    assert found["their_lab.late"] == (lab / "late.py").resolve()
    assert not any(name.startswith("their_lab") for name in sys.modules)


def test_a_package_that_imports_all_its_modules_counts_whole(lab: Path) -> None:
    (lab / "__init__.py").write_text("from their_lab import methods, unused")
    assert own_modules.own_files("their_lab.deep").keys() == {*NAMES, "their_lab.unused"}


def test_the_digest_is_of_meaning(lab: Path) -> None:
    before = own_modules.own_digest("their_lab.methods.mine")
    (lab / "late.py").write_text("# a comment\n\nx  =  1\n")
    (lab / "unused.py").write_text("y = 2")
    assert own_modules.own_digest("their_lab.methods.mine") == before
    (lab / "late.py").write_text("x = 2\n")
    assert own_modules.own_digest("their_lab.methods.mine") != before
    assert own_modules.own_digest("segquant.presets.rtn", "segquant_bench.pipelines.peers.quanto") is None


@pytest.mark.parametrize("path", ["builtins.open", "no_such_lab.x", "math.sqrt"])
def test_what_is_in_no_file(lab: Path, path: str) -> None:
    with pytest.raises(PipelineError, match="in no Python file"):
        own_modules.own_digest(path)


def test_neighbours_of_an_installed_package_do_not_count() -> None:
    found = own_modules.own_files("omegaconf.OmegaConf")
    assert {name.partition(".")[0] for name in found} == {"omegaconf"}


def test_a_package_of_the_stack_counts_by_its_version(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = own_modules.own_files("torch.nn.Linear", "their_lab.helper.x")
    assert "their_lab.helper" in found and not any(name.startswith("torch") for name in found)
    alone, both = (
        own_modules.own_digest("torch.nn.Linear"),
        own_modules.own_digest("torch.nn.Linear", "their_lab.late.x"),
    )
    assert alone is not None and alone != both
    monkeypatch.setattr(own_modules.importlib.metadata, "version", lambda _: "0.0.1")
    assert own_modules.own_digest("torch.nn.Linear") not in (None, alone)
