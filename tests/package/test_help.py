"""`segquant --help`: every group and option of conf/ is on the page, and its examples run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from segquant_bench.commands import segquant
from segquant_bench.pipelines.config.help import QUESTIONS, WIDTH, describe
from segquant_bench.pipelines.config.quantizer import build_method
from segquant_bench.pipelines.config.resolvers import register
from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.runtime.paths import CONF

A_SCREEN = 48  # beside the lines of options, one each


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "argv", ["segquant", "--help"])
    segquant()
    return capsys.readouterr().out


def _commands(page: str) -> list[list[str]]:
    """The overrides of the page's examples."""
    examples = page.partition("Examples\n")[2].partition("\n\n")[0]
    commands = [re.split(r"\s{3,}", line.strip())[0] for line in examples.splitlines()]
    return [[word for word in shlex.split(line)[1:] if word != "-m"] for line in commands]


def test_it_is_the_page_that_hydra_prints(page: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "segquant_bench.pipelines.main", "--help", "quantizer=segquant_g"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout == page


def test_every_group_and_option_is_on_it(page: str) -> None:
    groups = {folder.name for folder in CONF.iterdir() if folder.is_dir() and folder.name != "hydra"}
    assert groups == QUESTIONS.keys()
    for group in groups:
        (listed,) = re.findall(rf"^  {group}= .*\n((?:   .*\n)+)", page, re.MULTILINE)
        options = [line[4:].split()[0] for line in listed.splitlines()]
        assert options == sorted(file.stem for file in (CONF / group).glob("*.yaml"))
        assert all(len(line[4:].split()) > 1 for line in listed.splitlines()), "an option has no description"


def test_a_star_marks_what_a_plain_run_takes(page: str) -> None:
    assert set(re.findall(r"^   \*(\w+)", page, re.MULTILINE)) == {
        "emoji_sd3", "segquant_g", "w8a8_tensor", "auto", "emoji", "uniform", "none", "fast", "wandb"
    }  # fmt: skip


def test_it_fits_a_terminal_and_does_not_dump_the_configuration(page: str) -> None:
    lines = page.splitlines()
    options = sum(re.match(r"   [ *]\w", line) is not None for line in lines)
    assert len(lines) - options <= A_SCREEN and max(map(len, lines)) <= WIDTH
    assert "_target_" not in page and "$" not in page.replace('"$(segquant', "")


def test_its_examples_parse(page: str) -> None:
    commands = _commands(page)
    assert len(commands) == 5
    register()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        for words in commands:
            (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), None)
            for job in jobs:
                build_method(validate(compose("config", overrides=list(job))))


def test_options_of_a_configuration_directory_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "quantizer").mkdir()
    (tmp_path / "quantizer" / "mine.yaml").write_text("# My method: half of it. Not this.\n_target_: my.method\n")
    command = [sys.executable, "-m", "segquant_bench.pipelines.main", "--help", "--config-dir", str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.search(r"^    mine +My method: half of it$", printed, re.MULTILINE)


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        ("# Short (a.b 2.5). More.\nname: x\n", "Short (a.b 2.5)"),
        ("# @package _global_\n# Over two\n# lines.\nname: x\n", "Over two lines"),
        ("# A first clause of some words, and a second that does not fit into it.\n", "A first clause of some words …"),
        ("# In brackets (a first, a second, a third, a fourth one).\n", "In brackets (a first, a second, a third …"),
        ("name: x\n", ""),
    ],
)
def test_descriptions(tmp_path: Path, comment: str, expected: str) -> None:
    (tmp_path / "x.yaml").write_text(comment)
    assert describe(tmp_path / "x.yaml", 42) == expected


def test_shell_completion_is_what_the_page_says(page: str) -> None:
    (asked,) = re.findall(r"segquant (-sc install=\w+)\)", page)
    command = [sys.executable, "-m", "segquant_bench.pipelines.main", *asked.split()]
    assert "complete" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
