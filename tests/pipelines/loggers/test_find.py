"""A logger is one file of code and one of configuration; what is none, or cannot be used, is told before the work."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from segquant_bench.pipelines.config.sections import LoggerConfig
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.loggers import find
from segquant_bench.pipelines.loggers.find import find_logger, names
from segquant_bench.pipelines.loggers.logger import Logger
from segquant_bench.pipelines.runtime.paths import CONF

MINE = """
from segquant_bench.pipelines.loggers.logger import Logger


class Mine(Logger):
    settings = frozenset({"images"})

    def check(self):
        self.told = self.config.arguments["told"]


def no_class(config):
    return None
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_logger_of_a_test.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_logger_of_a_test"


def test_every_member_has_a_configuration_and_the_reverse() -> None:
    assert names() == sorted(path.stem for path in (CONF / "logger").glob("*.yaml"))
    assert {"none", "tensorboard", "wandb"} <= set(names())


@pytest.mark.parametrize("name", names())
def test_members_are_found_by_name(name: str) -> None:
    if name == "tensorboard" and importlib.util.find_spec("tensorboardX") is None:
        pytest.skip("tensorboardX is not installed")
    assert isinstance(find_logger(LoggerConfig(name, mode="offline" if name == "wandb" else "auto")), Logger)


def test_one_s_own(own: str) -> None:
    logger = find_logger(LoggerConfig("mine", images=3, _target_=f"{own}.Mine", arguments={"told": 4}))
    assert logger.told == 4  # type: ignore[attr-defined]
    for name in ("no_class", "Mine.__name__"):
        with pytest.raises(PipelineError, match="is no logger; name a class that derives from"):
            find_logger(LoggerConfig("mine", _target_=f"{own}.{name}"))
    with pytest.raises(PipelineError, match="has no 'Mime'; did you mean 'Mine'"):
        find_logger(LoggerConfig("mine", _target_=f"{own}.Mime"))


def test_names_and_settings_that_are_none(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PipelineError, match="logger.name='wndb' is not known; did you mean 'wandb'"):
        find_logger(LoggerConfig("wndb"))
    own_config = LoggerConfig("mine", project="p", _target_=f"{own}.Mine", arguments={"told": 4})
    with pytest.raises(
        PipelineError, match=r"logger=mine has no use for logger.project; leave it out \(it reads logger.im"
    ):
        find_logger(own_config)
    with pytest.raises(PipelineError, match="logger.arguments are those of a logger of one's own"):
        find_logger(LoggerConfig("wandb", arguments={"a": 1}))
    find_logger(LoggerConfig("none", project="p", images=3))  # which may end any command line
    monkeypatch.setattr(find, "names", lambda: ["none"])
    with pytest.raises(PipelineError, match="logger.name='wandb' is not known"):
        find_logger(LoggerConfig("wandb"))
