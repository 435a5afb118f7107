"""TensorBoard: the second logger, whose event files are read back; and what every logger is shown."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from PIL import Image

from segquant_bench.pipelines.config.sections import LoggerConfig
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.loggers.content import show_results
from segquant_bench.pipelines.loggers.find import find_logger
from segquant_bench.pipelines.loggers.guarded import logged
from segquant_bench.pipelines.loggers.logger import About
from segquant_bench.pipelines.runtime.finished import Finished
from tests.pipelines.conftest import Command, Tiny
from tests.pipelines.loggers.events import event_values, scalars_of, texts_of
from tests.pipelines.loggers.support import about, finished


def _log(folder: Path, run: About, end: BaseException | None = None) -> None:
    pytest.importorskip("tensorboardX", reason="of the extra tensorboard")
    with logged(find_logger(LoggerConfig("tensorboard", images=1)), run) as shown:
        shown.stage_began("generate")
        shown.ask(lambda logger: logger.values({"progress/memory_mb": 5.0}))
        shown.stage_ended(Finished("generate", "key", folder, 2.5, 7.0, 9.0, cached=False))
        if end is not None:
            raise end
        shown.ask(lambda logger: show_results(logger, finished(folder), folder))


def test_event_files_hold_what_there_is(tmp_path: Path) -> None:
    run = about(tmp_path)
    _log(tmp_path, run)
    folder = tmp_path / "tensorboard"
    scalars, texts = scalars_of(folder), texts_of(folder)
    assert scalars["progress/memory_mb"] == [(1, 5.0)]
    assert scalars["stage/generate/seconds"] == [(2, 2.5)] and scalars["stage/generate/cached"] == [(2, 0.0)]
    assert scalars["stage/generate/peak_device_memory_mb"] == [(2, 9.0)]
    assert scalars["metric/psnr"][0][1] == scalars["metric/psnr/low"][0][1] + 0.5 == 40.5
    assert scalars["compression"][0][1] == 4.0 and texts["device/type"] == ["cpu"]
    curve = dict(scalars["output_error_at_step/sampling_step"])
    assert curve == {1: pytest.approx(0.35), 3: pytest.approx(0.2)}, (
        "prompts count alike, however often they are called"
    )
    assert texts["stage"] == ["generate"] and texts["state"] == ["finished"]
    assert texts["per_picture"] == [
        "| index | prompt | psnr | clip, unquantized |\n| --- | --- | --- | --- |\n| 0 | a cat | 40.5 | 3 |"
    ]
    (image,) = [value.image for _, value in event_values(folder) if value.WhichOneof("value") == "image"]
    shown = Image.open(io.BytesIO(image.encoded_image_string))
    assert shown.size == (12, 4) and shown.getpixel((0, 0)) == (0, 0, 255) and shown.getpixel((8, 0)) == (255, 0, 0)
    size = sum(path.stat().st_size for path in folder.iterdir())
    _log(tmp_path, run)
    assert sum(path.stat().st_size for path in folder.iterdir()) == size, "a finished run is not logged again"


def test_ends_that_are_none_go_on(tmp_path: Path) -> None:
    run, folder = about(tmp_path), tmp_path / "tensorboard"
    for error, state in (
        (ValueError("no\nway"), "failed: no way"),
        (KeyboardInterrupt(), "preempted: ended by SIGINT"),
    ):
        with pytest.raises(type(error)):
            _log(tmp_path, run, error)
        assert state in texts_of(folder)["state"]
    _log(tmp_path, run)
    assert sorted(texts_of(folder)["state"]) == ["failed: no way", "finished", "preempted: ended by SIGINT"]


def test_a_command_writes_events_while_it_works(command: Command, tiny: Tiny, cache: Path) -> None:
    pytest.importorskip("tensorboardX", reason="of the extra tensorboard")
    outcome = command(*tiny.overrides(cache), "quantizer=rtn", "logger=tensorboard")
    assert outcome.code == 0, outcome.err
    scalars = scalars_of(outcome.folder / "tensorboard")
    order = list(scalars)
    assert order.index("progress/seconds") < order.index("stage/generate/seconds") < order.index("metric/psnr")
    assert scalars["stage/generate/pictures_per_second"][0][1] > 0


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboardX"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(
        PipelineError, match=r"the package tensorboardX; run pip install '\.\[tensorboard\]' in a clone"
    ):
        find_logger(LoggerConfig("tensorboard"))
