"""What is said of the package in several places is the same everywhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

import segquant

REPOSITORY = Path(__file__).parents[2]


def _project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def _names(requirements: list[str]) -> set[str]:
    found = (re.match(r"[A-Za-z0-9._-]+", line) for line in requirements)
    return {match[0].lower() for match in found if match is not None}


def test_the_version_has_one_source() -> None:
    assert _project()["dynamic"] == ["version"] and "version" not in _project()
    assert re.fullmatch(r"\d+\.\d+\.\d+", segquant.__version__)
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == segquant.__version__ and citation["license"] == _project()["license"]


def test_the_citation_names_the_paper() -> None:
    (paper,) = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())["references"]
    assert paper["identifiers"][0]["value"] == "arXiv:2507.14811" and len(paper["authors"]) == 10


def test_the_library_depends_on_little() -> None:
    assert _names(_project()["dependencies"]) == {"torch", "safetensors", "numpy"}
    assert _project()["optional-dependencies"].keys() == {
        "bench", "deploy", "peers", "ray", "search", "tensorboard", "train", "docs", "dev",
    }  # fmt: skip


def test_pinned_versions_are_of_packages_that_the_project_names() -> None:
    pinned = _names((REPOSITORY / "constraints.txt").read_text().split())
    extras = _project()["optional-dependencies"].values()
    assert pinned <= _names(_project()["dependencies"]).union(*map(_names, extras))


def test_hooks_run_tools_that_are_installed_for_tests() -> None:
    config = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())
    entries = [hook["entry"].split()[0] for repo in config["repos"] for hook in repo["hooks"]]
    tools = {entry.removeprefix(".venv/bin/") for entry in entries if entry.startswith(".venv/")}
    assert tools == {"ruff", "lint-imports", "mypy"}
    assert {"ruff", "import-linter", "mypy"} <= _names(_project()["optional-dependencies"]["dev"])
