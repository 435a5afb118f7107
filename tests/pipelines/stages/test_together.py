"""Several processes on one stage: the bytes of one process, also where one of them dies."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from segquant.keep import Keeper
from segquant_bench.pipelines.config.run_hash import config_hash
from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.runtime.unfinished import PIECES
from segquant_bench.pipelines.sampling import collect
from segquant_bench.pipelines.sampling.share import Share
from segquant_bench.pipelines.stages.benchmark import check_run, open_run
from segquant_bench.pipelines.stages.calibrate import CALIBRATE
from segquant_bench.pipelines.stages.run import Run, Stage
from segquant_bench.pipelines.stages.shared.collecting import step_weights
from segquant_bench.pipelines.stages.shared.together import cores, together
from tests.pipelines.conftest import Tiny, compose_config

SAMPLED = ("reference", "calibrate", "generate")
"""Stages that several processes share."""


def _files(cache: Path) -> dict[str, Any]:
    """Sizes and digests of all files of what is sampled, by stage and key."""
    places = [path for path in (cache / "stage").iterdir() if path.name.partition("-")[0] in SAMPLED and path.is_dir()]
    return {path.name: json.loads((path / "stage.json").read_text())["files"] for path in places}


@pytest.mark.parametrize("stages", [SAMPLED[1:], pytest.param(SAMPLED[:1], marks=pytest.mark.slow)])
def test_two_processes_make_the_bytes_of_one(
    stages: tuple[str, ...], tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of three batches, which two processes cannot share evenly."""
    found, hashes = [], set()
    for count in (1, 2):
        cache = tmp_path / str(count)
        overrides = [each for each in tiny.overrides(cache) if not each.startswith("calibration.prompts")]
        overrides += [f"generate.processes={count}", "model.batch_size=2", "calibration.prompts=5", "dataset.size=5"]
        run = open_run(validate(compose_config([*overrides, "quantizer=rtn", "precision=w8a8_tensor"])))
        check_run(run)
        with caplog.at_level(logging.WARNING):
            run.stage(stages[-1])
        hashes |= {config_hash(run.config, run.fingerprint, run.dataset.record)}
        found.append(_files(cache))
    assert not [record for record in caplog.records if "was lost" in record.getMessage()]
    assert {name.partition("-")[0] for name in found[0]} == set(stages)
    assert found[0] == found[1] and len(hashes) == 1


def test_steps_are_weighed_once(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the first process; another one, and a run that goes on, find the weights with the batches."""
    weigh, weighed, found = collect.rounding_loss, list[str](), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        weighed.append("")
        return weigh(*args, **kwargs)

    monkeypatch.setattr(collect, "rounding_loss", counted)
    for count in (1, 2):
        overrides = [
            *tiny.overrides(tmp_path / "cache"),
            "calibration=loss",
            "calibration.pilot=2",
            "model.batch_size=2",
        ]
        overrides += ["calibration.steps_per_prompt=1", "quantizer=rtn"]
        runs = [open_run(validate(compose_config(overrides))) for _ in range(count)]
        folder = tmp_path / str(count)
        folder.mkdir()
        for number, run in enumerate(runs[1:], 1):
            step_weights(runs[0], Keeper(folder / PIECES))  # as the first one does before it starts others
            assert CALIBRATE.share is not None
            CALIBRATE.share(run, folder, Share(number, count))
        CALIBRATE.compute(runs[0], folder)
        assert len(weighed) == count, "once in each folder"
        found.append({str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("*/inputs.*"))})
    assert found[0] == found[1] and found[0]


@pytest.mark.slow
def test_two_processes_judge_as_one(tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = []
    for count in (1, 2):
        overrides = [*tiny.overrides(tmp_path / str(count)), "dataset.size=5", "metric.metrics=[fid_ref,psnr]"]
        overrides += [f"generate.processes={count}", "metric.backends.batch_size=2", "quantizer=rtn"]
        run = open_run(validate(compose_config(overrides)))
        with caplog.at_level(logging.WARNING):
            found.append((run.stage("evaluate").path / "evaluation" / "metrics.json").read_bytes())
    assert found[0] == found[1]
    assert not [record for record in caplog.records if "was lost" in record.getMessage()]


def _write(folder: Path, share: Share | None, total: int = 7) -> None:
    for start in range(total):
        if share is None or share.has(start, 1):
            path = folder / str(start)
            if not path.exists():
                path.write_text(f"{os.getpid()}")


def _dies(run: Run, folder: Path, share: Share) -> None:
    (folder / str(share.number)).write_text(f"{os.getpid()}")
    os._exit(9)


def _fails(run: Run, folder: Path, share: Share) -> None:
    raise PipelineError("the denoiser's output is NaN")


def _works(run: Run, folder: Path, share: Share) -> None:
    _write(folder, share)


def _nothing(run: Run, folder: Path) -> None:
    raise AssertionError


@pytest.mark.parametrize("share, said", [(_dies, "ended with code 9"), (_fails, "output is NaN"), (_works, None)])
def test_what_a_lost_process_left_is_made(
    share: Any, said: str | None, tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = validate(compose_config([*tiny.overrides(tmp_path / "cache"), "generate.processes=3"]))
    run = Run(config, (Stage("x", _nothing, share=share),))
    with caplog.at_level(logging.WARNING):
        with together(run, "x", tmp_path) as own:
            assert own == Share(0, 3)
            _write(tmp_path, own)
        there = {path.name for path in tmp_path.iterdir() if path.is_file()}
        _write(tmp_path, None)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == set(map(str, range(7)))
    assert there == {"0", "3", "6"} | {_dies: {"1", "2"}, _fails: set(), _works: {"1", "2", "4", "5"}}[share]
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == (0 if said is None else 2)
    assert all(
        f"x {number} of 3 was lost" in line and str(said) in line for number, line in zip((2, 3), lines, strict=False)
    )


def test_an_interrupt_ends_all(tiny: Tiny, tmp_path: Path) -> None:
    import multiprocessing

    config = validate(compose_config([*tiny.overrides(tmp_path / "cache"), "generate.processes=2"]))
    with pytest.raises(KeyboardInterrupt), together(Run(config, (Stage("x", _nothing, share=_works),)), "x", tmp_path):
        raise KeyboardInterrupt
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["generate.processes=0"], r"generate\.processes=0 is out of range; it must be from 1 to 1024"),
        (
            ["quantizer=quanto", "precision=w8a16"],
            "needs the same model in every process.*quanto.*set generate",
        ),
        (["run=openvino"], "cannot share the file that run=openvino exports"),
        (["generate.processes=999"], rf"takes a processor core for each, and there are {cores()}; set generate.proc"),
    ],
)
def test_what_one_process_alone_can_do(overrides: list[str], said: str, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=said):
        check_run(open_run(validate(compose_config(
            [*tiny.overrides(tmp_path), "generate.processes=2", *overrides]
        ))))  # fmt: skip


def test_a_gpu_for_each(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    run = open_run(validate(compose_config([*tiny.overrides(tmp_path), "generate.processes=3"])))
    from segquant_bench.pipelines.stages.shared.together import check_processes

    if not run.device.startswith("cuda"):
        run.__dict__["device"] = "cuda"
    with pytest.raises(PipelineError, match="takes a GPU for each, and there are 2; set generate.processes=2"):
        check_processes(run)


@pytest.mark.parametrize("total, size, count", [(5, 2, 2), (7, 1, 3), (3, 4, 2), (64, 16, 5)])
def test_shares_are_all_batches_and_differ_by_one(total: int, size: int, count: int) -> None:
    starts = range(0, total, size)
    found = [[start for start in starts if Share(number, count).has(start, size)] for number in range(count)]
    assert sorted(start for share in found for start in share) == list(starts)
    assert max(map(len, found)) - min(map(len, found)) <= 1
