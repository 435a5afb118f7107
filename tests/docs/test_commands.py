"""The commands of README and of every page: each of them composes, and what they name exists."""

from __future__ import annotations

import importlib.util
import re
import tomllib
import typing
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from segquant import presets
from segquant_bench.eval.cli import main as report
from segquant_bench.eval.status_cli import main as status
from segquant_bench.pipelines.config.quantizer import build_method
from segquant_bench.pipelines.config.resolvers import register
from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.plan.config import compose_plan
from segquant_bench.pipelines.runtime.paths import CONF
from tests.docs.pages import PAGES, ROOT, commands, read, words

HELPS = ("--help", "--cfg", "--hydra-help")


def _every(program: str) -> list[str]:
    """The program's command lines on all pages, those of CONTRIBUTING's packages apart (test_recipes runs them)."""
    found = [line for page in PAGES if page != "CONTRIBUTING.md" for line in commands(read(page), program)]
    return list(dict.fromkeys(line for line in found if not any(word in HELPS for word in words(line))))


RUNS = _every("segquant")


def _jobs(line: str) -> list[list[str]]:
    """The overrides of every job of a command line; of an interval, which a search draws from, its lower end."""
    arguments = [re.sub(r"interval\(([\d.]+),[\d.]+\)", r"\1", word) for word in words(line) if word != "-m"]
    overrides = OverridesParser.create().parse_overrides(arguments)
    (jobs,) = BasicSweeper.split_arguments(overrides, None)
    return [list(job) for job in jobs]


def _method(overrides: list[str]) -> Any:
    register()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return build_method(validate(compose("config", overrides=overrides, return_hydra_config=False)))


def test_there_are_commands() -> None:
    assert len(RUNS) > 20 and any("experiment=main" in line for line in RUNS)
    readme = read("README.md")
    assert re.search(r"^make test$", readme, re.MULTILINE) and re.search(r"^make demo$", readme, re.MULTILINE)


@pytest.mark.parametrize("line", RUNS)
def test_runs_compose(line: str) -> None:
    jobs = _jobs(line)
    assert jobs
    for job in jobs:
        _method(job)


@pytest.mark.parametrize("override", re.findall(r"`'?(\+?quantizer\.\w+=[^`']+)'?`", read("docs/methods.md")))
def test_settings_of_a_method_compose(override: str) -> None:
    key, value = override.lstrip("+").split("=", 1)
    setting = key.removeprefix("quantizer.")
    takes = [name for name in ("rtn", "smoothquant", "gptq", "svdquant", "quarot") if setting in _settings(name)]
    changed = _method([override, f"quantizer={takes[0]}"]).value(setting)
    assert changed not in (None, False, ()) or value in ("exact", "false", "0")


def _settings(quantizer: str) -> set[str]:
    (keywords,) = typing.get_args(typing.get_type_hints(getattr(presets, quantizer))["settings"])
    return set(keywords.__annotations__)


@pytest.mark.parametrize("line", [line for line in _every("segquant-plan") if words(line)])
def test_plans_compose(line: str) -> None:
    assert compose_plan([word for word in words(line) if not word.startswith("--")]).model.name


@pytest.mark.parametrize("line", [line for line in _every("segquant-report") if words(line)])
def test_report_takes_the_options(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The folders of the text are not there; an option that is not known would end in argparse's SystemExit."""
    assert report(words(line)) == 2
    assert "outputs/sweeps" in capsys.readouterr().err


@pytest.mark.parametrize("line", [line for line in _every("segquant-status") if words(line)])
def test_status_takes_the_options(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(words(line)) == 2
    assert "is no directory" in capsys.readouterr().err


@pytest.mark.parametrize("line", _every("python"))
def test_modules_and_scripts_exist(line: str) -> None:
    first, *rest = words(line)
    if first == "-m":
        spec = importlib.util.find_spec(rest[0])
        assert spec is not None and spec.origin is not None
        source = Path(spec.origin).read_text(encoding="utf-8")
        assert all(word in source for word in rest[1:] if word.startswith("--"))
    else:
        assert (ROOT / first).is_file()


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {words(line)[0] for page in PAGES for line in commands(read(page), "make") if words(line)}
    assert named <= targets and {"demo", "test"} <= named


def test_extras_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {extra for page in PAGES for extra in re.findall(r"pip install '\.\[(\w+)\]'", read(page))}
    assert named and named <= set(project["optional-dependencies"])


@pytest.mark.parametrize(
    ("group", "page"),
    [
        ("quantizer", "methods"), ("precision", "precisions"), ("model", "models"), ("dataset", "datasets"),
        ("run", "run"), ("calibration", "run"), ("correction", "run"), ("metric", "run"), ("logger", "run"),
        ("experiment", "run"),
    ],
)  # fmt: skip
def test_every_option_has_its_place(group: str, page: str) -> None:
    """Pages name every option of conf/GROUP (tiny ones are for tests), and none that is not there."""
    options = {path.stem for path in (CONF / group).glob("*.yaml") if not path.stem.startswith("tiny")}
    text = read(f"docs/{page}.md")
    named = set(re.findall(r"[\w*]+", " ".join(re.findall(r"`([^`\n]+)`", text))))
    missing = {option for option in options if not any(fnmatchcase(option, name) for name in named - {"*"})}
    assert options and not missing


def test_nothing_is_installed_by_name() -> None:
    """The package is on no index: pages, sentences and files say how it is installed from a clone."""
    folders = ("segquant", "segquant_bench", "pipelines", "eval", "conf", "docs", "examples", "benchmarks")
    files = [ROOT / page for page in PAGES] + [
        path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml", ".md")
    ]
    assert len(files) > 300
    assert [str(path) for path in files if re.search(r"install '?segquant\b", path.read_text(encoding="utf-8"))] == []
