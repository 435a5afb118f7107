"""W&B: what an offline run holds, read back from its file: from the first second, of every end."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segquant_bench.pipelines.loggers.for_wandb.mode import resolve_mode
from segquant_bench.pipelines.runtime.interrupt import Ended
from segquant_bench.pipelines.stages import benchmark
from tests.pipelines.conftest import Command, Outcome, Tiny
from tests.pipelines.loggers.offline import offline_files, read_offline


def _results(outcome: Outcome) -> dict[str, Any]:
    return json.loads((outcome.folder / "results.json").read_text())


def test_an_offline_run_holds_everything(
    command: Command, tiny: Tiny, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(cache, tmp_path / "other")
    monkeypatch.setenv("WANDB_TAGS", "mine")
    arguments = [*tiny.overrides(cache), "quantizer=rtn", "logger=wandb", "logger.group=a sweep", "logger.tags=[x y]"]
    outcome = command(*arguments, "correction=affine", "quantize=[denoiser,text_encoder]")
    assert outcome.code == 0, outcome.err
    results, found = _results(outcome), read_offline(outcome.folder)
    assert (found.run.run_group, found.run.project, found.run.run_id) == (
        "a sweep", "segquant", results["config_hash"]
    )  # fmt: skip
    assert results["name"] == "rtn+affine+text_encoder_w8a8_tensor"
    assert (found.run.display_name, found.run.job_type) == (f"tiny_random {results['name']}", "rtn")
    assert set(found.run.tags) == {"tiny_random", "rtn", "w8a8_tensor", "tiny", "x y", "mine"}
    assert found.config["quantizer"]["_target_"] == "segquant.presets.rtn"
    assert found.config["config_hash"] == results["config_hash"]
    assert found.exit_code == 0 and not found.preempting and found.summary["state"] == "finished"
    assert {"cpu", "memory_percent"} & found.system, "system metrics are on"
    _check_while_it_worked(results, found)
    _check_what_came_out(results, found, outcome.folder)
    files = _bytes(outcome.folder)
    again = command(*[*arguments, "correction=affine", "quantize=[denoiser,text_encoder]", "logger=none"],
                    f"cache={tmp_path / 'other'}")  # fmt: skip
    assert again.code == 0 and _bytes(again.folder) == files, "no logger changes a byte"
    assert not (tmp_path / "other" / "wandb").exists()


def _bytes(folder: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in sorted((folder / "images").glob("*.png"))}
    assert len(found) == 4
    return {**found, "metrics": (folder / "evaluation" / "metrics.json").read_bytes()}


def _check_while_it_worked(results: dict[str, Any], found: Any) -> None:
    order = [key for row in found.rows for key in row if key == "stage" or key.startswith("metric/")]
    assert order[0] == "stage" and order.index("stage") < order.index("metric/psnr")
    assert found.values("stage") == [name for name, stage in results["stages"].items() if not stage["cached"]]
    for name, stage in results["stages"].items():
        assert found.history[f"stage/{name}/seconds"] == pytest.approx(stage["seconds"])
        assert found.values(f"stage/{name}/cached")[0] == stage["cached"]
    assert found.history["stage/generate/pictures_per_second"] > 0
    seconds = found.values("progress/seconds")
    assert len(seconds) >= 4 and seconds == sorted(seconds) and found.history["progress/memory_mb"] > 1


def _check_what_came_out(results: dict[str, Any], found: Any, folder: Path) -> None:
    for metric in results["metrics"]:
        assert found.history[f"metric/{metric['name']}"] == pytest.approx(metric["value"])
    summary = found.summary
    assert summary["compression"] == pytest.approx(results["weight_bytes_float"] / results["weight_bytes"])
    assert summary["device/type"] == "cpu" and summary["device/cpus"] == results["device"]["cpus"]
    assert found.steps["output_error_at_step"] == found.steps["correction/prediction_error"] == "sampling_step"
    steps = results["per_row_steps"]
    curve = {row["sampling_step"]: row["output_error_at_step"] for row in found.rows if "output_error_at_step" in row}
    for step in set(steps):  # one call of each prompt at a step
        rows = [e for e, s in zip(results["per_row_output_errors"], steps, strict=True) if s == step]
        assert curve[step + 1] == pytest.approx(statistics.fmean(rows))
    assert len(curve) == len(set(steps)) >= 2
    assert found.values("correction/prediction_error") == pytest.approx(results["correction"]["prediction_error"])
    encoder = results["components"]["text_encoder"]["layer_errors"]
    assert found.history["layer_errors/_type"] == found.history["per_picture/_type"] == "table-file"
    assert found.history["layer_errors/nrows"] == len(results["layer_errors"]) + len(encoder)
    (run,) = offline_files(folder)
    table = json.loads((run.parent / "files" / found.history["per_picture/path"]).read_text())
    assert (
        table["columns"] == ["index", "prompt", "psnr", "ssim"]
        and [row[1] for row in table["data"]] == (results["prompts"])
    )
    images = found.history
    assert (images["images/count"], images["images/width"], images["images/height"]) == (4, 2 * 32 + 4, 32)
    assert images["images/captions"] == results["prompts"]
    (model,) = {artifact.name: artifact for artifact in found.artifacts if artifact.type == "model"}.values()
    assert model.name.endswith("tiny_random-rtn-affine-text_encoder_w8a8_tensor")
    names = {entry.path for entry in model.manifest.contents}
    assert {"correction.json", "text_encoder/quantized.json", "quantized.json"} <= names
    assert any(name.endswith(".safetensors") for name in names)


def _broken(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> Callable[[], None]:
    """Stages until the quantized model is made, then the error; returns what mends it."""
    compute = benchmark.compute_run

    def broken(run: Any) -> None:
        run.stage("quantize")
        raise error

    monkeypatch.setattr(benchmark, "compute_run", broken)
    monkeypatch.setattr("segquant_bench.pipelines.results.watched.compute_run", broken)
    return lambda: monkeypatch.setattr("segquant_bench.pipelines.results.watched.compute_run", compute)


def test_a_run_that_is_ended_goes_on_and_a_finished_one_is_not_logged_again(
    command: Command, tiny: Tiny, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*tiny.overrides(cache), "quantizer=rtn", "logger=wandb", "report=false"]
    mend = _broken(monkeypatch, Ended(15))
    outcome = command(*arguments)
    assert outcome.code == 143
    first = read_offline(outcome.folder)
    assert first.preempting and first.exit_code == 1
    assert (first.summary["state"], first.summary["why"]) == ("preempted", "ended by SIGTERM")
    assert "stage/quantize/seconds" in first.history and "metric/psnr" not in first.history
    shutil.rmtree(outcome.folder / "wandb")
    mend()
    outcome = command(*arguments)
    second = read_offline(outcome.folder)
    assert outcome.code == 0 and second.exit_code == 0 and second.summary["state"] == "finished"
    assert second.run.run_id == first.run.run_id == _results(outcome)["config_hash"]
    assert second.history["stage/quantize/cached"] == 1 and second.history["metric/psnr"] > 0
    outcome = command(*arguments)
    assert outcome.code == 0 and len(offline_files(outcome.folder)) == 1
    assert "wandb: logged before, " in (outcome.folder / "segquant.log").read_text()


def test_a_run_that_fails_is_marked_failed(
    command: Command, tiny: Tiny, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segquant_bench.pipelines.errors import PipelineError

    _broken(monkeypatch, PipelineError("the moon is full"))
    outcome = command(*tiny.overrides(cache), "quantizer=rtn", "logger=wandb")
    assert outcome.code == 1 and outcome.sentence.endswith("the moon is full")
    found = read_offline(outcome.folder)
    assert found.exit_code == 1 and not found.preempting
    assert (found.summary["state"], found.summary["why"]) == ("failed", "the moon is full")


KILLED = """
import sys
from pathlib import Path
from segquant_bench.pipelines.config.sections import LoggerConfig
from segquant_bench.pipelines.loggers.logger import About
from segquant_bench.pipelines.loggers.members.wandb import Wandb
folder = Path(sys.argv[1])
logger = Wandb(LoggerConfig("wandb", mode="offline"))
logger.check()
logger.open(About("abc", "content", "name", "group", "rtn", ("tag",), {"a": 1}, folder, folder / "cache"))
logger.stage_began("generate")
logger.values({"progress/share_of_stage": 0.5})
input()
"""


@pytest.mark.slow
def test_a_killed_run_leaves_what_it_logged_and_no_mark(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    environment = {**os.environ, "WANDB_X_STATS_SAMPLING_INTERVAL": "0.5"}  # what is logged reaches the disk with these
    command = [sys.executable, "-c", KILLED, str(tmp_path / "first")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as process:
        while not offline_files(tmp_path):
            assert process.poll() is None
            time.sleep(0.1)
        found = read_offline(tmp_path, lambda found: "progress/share_of_stage" in found.history)
        process.kill()
    assert found.history["stage"] == "generate" and found.history["progress/share_of_stage"] == 0.5
    assert found.run.run_id == "abc" and found.exit_code is None
    assert not (tmp_path / "first" / "cache").exists(), "the next run logs it again, under the same id"


def test_online_only_with_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert resolve_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert resolve_mode("auto") == "online" and resolve_mode("offline") == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert resolve_mode("auto") == "disabled"
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key\n")
    (tmp_path / "netrc").chmod(0o600)
    assert resolve_mode("auto") == "online"


def test_without_wandb_installed(command: Command, tiny: Tiny, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "wandb", None)  # any import of it fails, and find_spec says None
    outcome = command(*tiny.overrides(cache), "quantizer=none", "logger=wandb")
    assert outcome.code == 1 and "pip install wandb" in outcome.sentence
    outcome = command(*tiny.overrides(cache), "quantizer=none", "logger=none")
    assert outcome.code == 0, outcome.err
