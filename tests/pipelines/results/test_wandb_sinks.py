"""W&B is an optional sink: checked before the work or made to fit, one sentence, and no result lost; nothing twice."""

from __future__ import annotations

import errno
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import wandb
from PIL import Image

from segquant_bench.pipelines.config.sections import LoggerConfig
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.results import wandb_log, wandb_mode
from segquant_bench.pipelines.results.wandb_log import Sink, log_run, shortened
from segquant_bench.pipelines.results.wandb_mode import check_logger
from tests.pipelines.conftest import Command, Tiny
from tests.pipelines.results.test_wandb_log import _read


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No login of this machine's user, and no host."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_TAGS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(wandb_log, "_refused", [])
    wandb_mode._out_of_reach.cache_clear()


def _offline(folder: Path) -> list[Path]:
    return sorted(folder.glob("**/offline-run-*/*.wandb"))


def test_a_long_name_without_network_and_the_same_run_again(
    command: Command, tiny: Tiny, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    overrides = [
        *tiny.overrides(cache),
        "quantizer=rtn",
        "logger=wandb",
        f"name={'n' * 160}",
        f"logger.group={'g' * 200}",
    ]
    outcome = command(*overrides)
    assert outcome.code == 0 and (outcome.folder / "results.json").is_file()
    told = (outcome.folder / "segquant.log").read_text()
    assert told.count("W&B cannot be reached (http://127.0.0.1:9: ") == 1 and "Traceback" not in told
    results = json.loads((outcome.folder / "results.json").read_text())
    run = _read(outcome.folder)["run"]
    assert run.run_id == results["config_hash"] and len(run.display_name) == len(run.run_group) == 128
    again = command(*overrides, "report=false")
    assert again.code == 0 and len(_offline(again.folder)) == 1
    assert "wandb: logged before, " in (outcome.folder / "segquant.log").read_text()


def test_what_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for project in ("p" * 129, "a/b", "50%"):
        with pytest.raises(PipelineError, match="is no name for W&B; use at most 128 characters, and none of"):
            check_logger(LoggerConfig("wandb", project=project))
    monkeypatch.setenv("WANDB_TAGS", f"short,{'t' * 65}")
    with pytest.raises(PipelineError, match="WANDB_TAGS has a tag of 65 characters, W&B takes 64; shorten it"):
        check_logger(LoggerConfig("wandb"))


def test_a_host_that_answers_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(request: Any, timeout: float) -> None:
        raise wandb_mode.urllib.error.HTTPError(request.full_url, 404, "no page", request.headers, None)

    monkeypatch.setattr(wandb_mode.urllib.request, "urlopen", answers)
    assert check_logger(LoggerConfig("wandb", mode="online")) == "online"
    assert check_logger(LoggerConfig("wandb", mode="offline")) == "offline"


def test_texts_that_are_shortened_stay_apart() -> None:
    assert shortened("a b") == "a b" and shortened("x" * 128) == "x" * 128
    assert len(shortened("x" * 129)) == 128 and shortened("x" * 129) != shortened("x" * 130)
    assert wandb_log._artifact_name("a/\n\u202e猫" + "b" * 200).startswith("a---u202e-bbb")


class _Run:
    """A run of wandb that keeps what it is given."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments, self.logged = arguments, list[Any]()
        self.url = "https://host/run"
        self.settings = wandb.Settings(mode=arguments["mode"])

    def log(self, values: Any) -> None:
        self.logged.append(values)

    def log_artifact(self, artifact: Any) -> None:
        self.logged.append(artifact)

    def finish(self) -> None:
        self.logged.append("finished")


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


def _finished(folder: Path, **values: Any) -> dict[str, Any]:
    """The results of a run with one odd prompt."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(folder / "images" / "00000.png")
    return {
        "config_hash": "abc", "metrics": [], "layer_errors": {}, "output_error": 0.0, "per_row_output_errors": [],
        "components": {}, "stages": {}, "weight_bytes": 1, "weight_bytes_float": 1, "layer_error": {}, "git": "",
        "model": "m", "name": "n", "quantizer": "rtn", "prompts": ["a\ncat"], "artifacts": {"images": "images"},
        **values,
    }  # fmt: skip


def test_a_sweep_again_is_logged_once_and_what_changed_again(sent: list[_Run], tmp_path: Path) -> None:
    def log(project: str = "segquant", **values: Any) -> int:
        config = LoggerConfig("wandb", project=project)
        log_run(Sink(config, "online", "group", tmp_path / "cache"), _finished(tmp_path, **values), tmp_path, {})
        return len(sent)

    assert log() == 1 and log() == 1 and log(name="another name") == 1
    assert log(output_error=0.5) == 2, "other numbers"
    assert log(config_hash="abd") == 3, "another configuration"
    assert log("other") == 4
    assert [run.arguments["id"] for run in sent] == ["abc", "abc", "abd", "abc"]
    assert {run.arguments["resume"] for run in sent} == {"allow"}
    assert all(run.logged[-1] == "finished" for run in sent)
    assert sent[0].logged[0]["images"][0]._caption == "a cat"


def test_an_offline_run_that_is_gone_is_logged_again(sent: list[_Run], tmp_path: Path) -> None:
    sink = Sink(LoggerConfig("wandb"), "offline", "group", tmp_path / "cache")
    mark = tmp_path / "cache" / "wandb"
    log_run(sink, _finished(tmp_path), tmp_path, {})
    log_run(sink, _finished(tmp_path), tmp_path, {})
    assert len(sent) == 2, "the fake has no folder of its own"
    (file,) = mark.glob("*.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "place": str(tmp_path)}))
    log_run(sink, _finished(tmp_path), tmp_path, {})
    assert len(sent) == 2
    file.write_text("{")
    log_run(sink, _finished(tmp_path), tmp_path, {})
    assert len(sent) == 3


def test_a_key_that_is_refused(
    sent: list[_Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The runs are logged offline, and the others of the process are not tried online."""
    init = wandb.init

    def refusing(**arguments: Any) -> Any:
        if arguments["mode"] == "online":
            raise wandb.errors.AuthenticationError("401:\nthe key is wrong")
        return init(**arguments)

    monkeypatch.setattr(wandb, "init", refusing)
    sink = Sink(LoggerConfig("wandb"), "online", "group", tmp_path / "cache")
    with caplog.at_level(logging.INFO):
        for number in range(3):
            log_run(sink, _finished(tmp_path, config_hash=f"run{number}"), tmp_path, {})
    assert [run.arguments["mode"] for run in sent] == ["offline"] * 3
    assert caplog.text.count("W&B takes no run online (401: the key is wrong): logged offline, `wandb sync`") == 1


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), PermissionError("read-only"),
                                   ValueError("Artifact name is longer than 128 characters")])  # fmt: skip
def test_a_fault_of_the_sink_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    def failing(**_: Any) -> None:
        raise fault

    monkeypatch.setattr(wandb, "init", failing)
    log_run(Sink(LoggerConfig("wandb"), "offline", "g", tmp_path / "cache"), _finished(tmp_path), tmp_path, {})
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.message.startswith("the run is not logged to W&B (") and str(tmp_path) in record.message
    assert not (tmp_path / "cache" / "wandb").exists()
