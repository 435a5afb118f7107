"""W&B is checked before the work or made to fit; one sentence, and no result lost; nothing twice."""

from __future__ import annotations

import errno
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import wandb

from segquant_bench.pipelines.config.sections import LoggerConfig
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.loggers.content import show_results
from segquant_bench.pipelines.loggers.find import find_logger
from segquant_bench.pipelines.loggers.for_wandb import mode
from segquant_bench.pipelines.loggers.for_wandb.mode import check_logger
from segquant_bench.pipelines.loggers.for_wandb.names import artifact_name, shortened
from segquant_bench.pipelines.loggers.guarded import logged
from segquant_bench.pipelines.loggers.members.wandb import Wandb
from tests.pipelines.conftest import Command, Tiny
from tests.pipelines.loggers.offline import offline_files, read_offline
from tests.pipelines.loggers.support import about, finished


def test_a_long_name_without_network_and_the_same_run_again(
    command: Command, tiny: Tiny, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    overrides = [
        *tiny.overrides(cache),
        "quantizer=none",
        "logger=wandb",
        f"name={'n' * 160}",
        f"logger.group={'g' * 200}",
    ]
    outcome = command(*overrides)
    assert outcome.code == 0 and (outcome.folder / "results.json").is_file()
    told = (outcome.folder / "segquant.log").read_text()
    assert told.count("W&B cannot be reached (http://127.0.0.1:9: ") == 1 and "Traceback" not in told
    assert told.index("cannot be reached") < told.index("evaluate: computing"), "before the work"
    results = json.loads((outcome.folder / "results.json").read_text())
    run = read_offline(outcome.folder).run
    assert run.run_id == results["config_hash"] and len(run.display_name) == len(run.run_group) == 128
    again = command(*overrides, "report=false")
    assert again.code == 0 and len(offline_files(again.folder)) == 1
    assert "wandb: logged before, " in (outcome.folder / "segquant.log").read_text()


def test_what_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for project in ("p" * 129, "a/b", "50%", "", " "):
        with pytest.raises(PipelineError, match="is no name for W&B; use at most 128 characters, and none of"):
            find_logger(LoggerConfig("wandb", project=project))
    for entity in ("a b/c", "", "é"):
        with pytest.raises(PipelineError, match="is no user or team of W&B, whose names have letters, digits"):
            find_logger(LoggerConfig("wandb", entity=entity))
    for tag, told in (("t" * 65, "65 characters"), ("", "0 characters")):
        with pytest.raises(PipelineError, match=f"logger.tags has a tag of {told}, W&B takes 64; shorten it or leave"):
            find_logger(LoggerConfig("wandb", tags=["short", tag]))
    monkeypatch.setenv("WANDB_TAGS", f"short,{'t' * 65}")
    with pytest.raises(PipelineError, match="WANDB_TAGS has a tag of 65 characters, W&B takes 64; shorten it"):
        find_logger(LoggerConfig("wandb"))


def test_a_host_that_answers_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(request: Any, timeout: float) -> None:
        raise mode.urllib.error.HTTPError(request.full_url, 404, "no page", request.headers, None)

    monkeypatch.setattr(mode.urllib.request, "urlopen", answers)
    assert check_logger(LoggerConfig("wandb", mode="online")) == "online"
    assert check_logger(LoggerConfig("wandb", mode="offline")) == "offline"


def test_texts_that_are_shortened_stay_apart() -> None:
    assert shortened("a b") == "a b" and shortened("x" * 128) == "x" * 128
    assert len(shortened("x" * 129)) == 128 and shortened("x" * 129) != shortened("x" * 130)
    assert artifact_name("a/\n\u202e猫" + "b" * 200).startswith("a---u202e-bbb")


class _Run:
    """A run of wandb that keeps what it is given."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments, self.logged = arguments, list[Any]()
        self.url = "https://host/run"
        self.settings = wandb.Settings(mode=arguments["mode"])
        self.summary: dict[str, Any] = {}

    def log(self, values: Any) -> None:
        self.logged.append(values)

    def define_metric(self, name: str, **given: Any) -> None:
        pass

    def log_artifact(self, artifact: Any) -> None:
        self.logged.append(artifact)

    def finish(self, exit_code: int) -> None:
        self.logged.append(("finished", exit_code))


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[_Run]:
    """Runs begun by a wandb without a service."""
    found: list[_Run] = []

    def init(**arguments: Any) -> _Run:
        found.append(_Run(arguments))
        return found[-1]

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "teardown", lambda: None)
    return found


def _log(folder: Path, mode: str = "online", project: str = "segquant", **changed: Any) -> None:
    logger = Wandb(LoggerConfig("wandb", project=project))
    logger._mode = mode
    with logged(logger, about(folder, **changed)) as shown:
        shown.ask(lambda logger: show_results(logger, finished(folder), folder))


def test_a_sweep_again_is_logged_once_and_what_changed_again(
    sent: list[_Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def log(project: str = "segquant", **changed: Any) -> int:
        _log(tmp_path, "online", project, **changed)
        return len(sent)

    assert log() == 1 and log() == 1 and log(name="another name") == 1
    assert log(content="other stages") == 2
    assert log(id="abd") == 3, "another configuration"
    assert log("other") == 4
    assert [run.arguments["id"] for run in sent] == ["abc", "abc", "abd", "abc"]
    assert {run.arguments["resume"] for run in sent} == {"allow"}
    assert all(run.logged[-1] == ("finished", 0) for run in sent)
    (images,) = [row["images"] for row in sent[0].logged if "images" in row]
    assert images[0]._caption == "a cat" and images[0].image.getpixel((0, 0)) == (0, 0, 255)
    assert images[0].image.getpixel((8, 0)) == (255, 0, 0), "the reference is to the left"
    monkeypatch.setenv("WANDB_SWEEP_ID", "x")
    assert log() == 5, "a trial of an agent is told whatever was logged before"


def test_an_offline_run_that_is_gone_is_logged_again(sent: list[_Run], tmp_path: Path) -> None:
    for _ in range(2):
        _log(tmp_path, "offline")
    assert len(sent) == 2, "the fake has no folder of its own"
    (file,) = (tmp_path / "cache" / "wandb").glob("*.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "place": str(tmp_path)}))
    _log(tmp_path, "offline")
    assert len(sent) == 2
    file.write_text("{")
    _log(tmp_path, "offline")
    assert len(sent) == 3


@pytest.mark.parametrize(
    "error",
    [
        wandb.errors.AuthenticationError("401:\nthe key is wrong"),
        wandb.errors.CommError("404:\nno such project"),
    ],
)
def test_a_key_or_a_project_that_is_refused(
    sent: list[_Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    """Told before the work; the runs are logged offline, and the others of the process are not tried online."""
    init = wandb.init

    def refusing(**arguments: Any) -> Any:
        if arguments["mode"] == "online":
            raise error
        return init(**arguments)

    monkeypatch.setattr(wandb, "init", refusing)
    told = f"W&B takes no run online ({' '.join(str(error).split())}): logged offline, `wandb sync` can send it later"
    with caplog.at_level(logging.INFO):
        for number in range(3):
            logger = Wandb(LoggerConfig("wandb"))
            logger._mode = "online"
            with logged(logger, about(tmp_path, id=f"run{number}")):
                assert caplog.text.count(told) == 1
    assert [run.arguments["mode"] for run in sent] == ["offline"] * 3


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), PermissionError("read-only"),
                                   ValueError("Artifact name is longer than 128 characters")])  # fmt: skip
def test_a_fault_of_the_service_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    def failing(**_: Any) -> None:
        raise fault

    monkeypatch.setattr(wandb, "init", failing)
    _log(tmp_path, "offline")
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.message.startswith("logger=wandb fails (") and record.message.endswith("results.json has all")
    assert not (tmp_path / "cache" / "wandb").exists()


def test_a_folder_that_takes_no_file_is_told_before_the_work(
    sent: list[_Run], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """wandb itself would write into the system's temporary folder, and tell nobody."""
    (tmp_path / "wandb").write_text("a file")
    _log(tmp_path, "offline")
    assert not sent and caplog.text.count("logger=wandb fails (") == 1


def test_a_run_whose_logging_broke_is_closed_and_logged_again(
    sent: list[_Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: _Run, artifact: Any) -> None:
        raise OSError("the staging folder is read-only")

    with monkeypatch.context() as patch:
        patch.setattr(_Run, "log_artifact", failing)
        (tmp_path / "denoiser").mkdir()
        (tmp_path / "denoiser" / "model.safetensors").write_text("x")
        logger = Wandb(LoggerConfig("wandb"))
        logger._mode = "online"
        with logged(logger, about(tmp_path)) as shown:
            results = finished(tmp_path, stages={"quantize": {"path": ".", "seconds": 1, "peak_memory_mb": 1,
                                                              "cached": False}})  # fmt: skip
            shown.ask(lambda logger: show_results(logger, results, tmp_path))
    assert sent[0].logged[-1] == ("finished", 1)
    assert sent[0].summary["why"] == "not all was logged: the staging folder is read-only"
    _log(tmp_path)
    assert len(sent) == 2
