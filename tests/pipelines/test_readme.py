"""The README's commands: each of them composes, and its options are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from segquant_bench.pipelines.config.quantizer import build_method
from segquant_bench.pipelines.config.schema import register, validate
from segquant_bench.pipelines.main import CONF

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if re.match(r"segquant(\s|$)", line)]
COMMANDS += re.findall(r"`(segquant -m [^`…]*)`", README)


def _jobs(line: str) -> list[list[str]]:
    """The overrides of every job of a command line; an ellipsis stands for whatever one has."""
    words = [word for word in shlex.split(line, comments=True)[1:] if word != "-m" and "…" not in word]
    (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), None)
    return [list(job) for job in jobs]


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 10 and any("experiment=main" in line for line in COMMANDS)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_compose(line: str) -> None:
    register()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        jobs = _jobs(line)
        assert jobs
        for job in jobs:
            build_method(validate(compose("config", overrides=job, return_hydra_config=False)))


@pytest.mark.parametrize("override", re.findall(r"'([+\w.]+=[^'`]*\{[^'`]*\})'", README))
def test_inline_overrides_compose(override: str) -> None:
    register()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        method = build_method(validate(compose("config", overrides=[override])))
    assert method.targets.overrides
