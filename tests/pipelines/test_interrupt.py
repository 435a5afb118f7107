"""Ctrl-C in any stage: exit 130, nothing half-written, and the same command goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipelines.conftest import Command, Tiny

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("reference", "calibrate", "graph", "quantize", "generate", "evaluate")


def _folders(cache: Path) -> set[str]:
    return {path.name.partition("-")[0] for path in (cache / "stage").iterdir() if path.is_dir()}


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    """A test run started in the background of a script has SIGINT ignored; here it counts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("stage", STAGES)
def test_interrupt_at_the_end_of_a_stage(
    command: Command, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """The worst moment: everything of the stage is written and nothing is published."""
    from segquant_bench.pipelines.stages import benchmark
    from segquant_bench.pipelines.stages.run import Run

    def interrupted(run: Run, folder: Path) -> None:
        works[stage].compute(run, folder)
        signal.raise_signal(signal.SIGINT)

    works = {each.name: each for each in benchmark.STAGES}
    changed = works | {stage: dataclasses.replace(works[stage], compute=interrupted)}

    overrides = [*tiny.overrides(tmp_path / "cache"), "quantizer=rtn"]
    with monkeypatch.context() as patch:
        patch.setattr(benchmark, "STAGES", tuple(changed.values()))
        outcome = command(*overrides)
    assert outcome.code == 130
    assert "Traceback" not in outcome.err and "same command" in outcome.sentence
    before = STAGES[: STAGES.index(stage)]
    assert _folders(tmp_path / "cache") - ({stage} if works[stage].keeps else set()) == set(before)
    # which this test's own stage would go on with; the true one has another key
    left = list((tmp_path / "cache" / "stage").glob("*.partial*"))
    kept = [[path for name in works[stage].keeps for path in (folder / name).rglob("*.*")] != [] for folder in left]
    assert kept == [True] * bool(works[stage].keeps)
    assert not (outcome.folder / "results.json").exists()
    outcome = command(*overrides)
    assert outcome.code == 0, outcome.err
    stages = json.loads((outcome.folder / "results.json").read_text())["stages"]
    assert {name for name, record in stages.items() if record["cached"]} == set(before)


@pytest.mark.parametrize(
    "sent",
    [
        signal.SIGTERM,
        *(pytest.param(sent, marks=pytest.mark.slow) for sent in (signal.SIGINT, signal.SIGUSR1)),
        pytest.param(signal.SIGKILL, marks=pytest.mark.slow),  # the cache's tests have a small one
    ],
)
def test_signal_from_outside(tiny: Tiny, tmp_path: Path, sent: signal.Signals) -> None:
    """A real process amid a long reference stage; after SIGKILL the next run clears what was left."""
    cache = tmp_path / "cache"
    overrides = [*tiny.overrides(cache), "quantizer=none", f"hydra.run.dir={tmp_path}/run"]
    arguments = [sys.executable, "-m", "segquant_bench.pipelines.main", *overrides]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    long = subprocess.Popen(
        [*arguments, "model.call.num_inference_steps=100000"],
        cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 600
    try:
        while not list(cache.glob("stage/reference-*.partial*/images")):
            assert time.monotonic() < deadline and long.poll() is None
            time.sleep(0.05)
        long.send_signal(sent)
        _, err = long.communicate(timeout=120)
    finally:
        long.kill()
        long.wait()
    assert "Traceback" not in err
    left = list(cache.glob("stage/*.partial*"))
    if sent != signal.SIGKILL:
        assert long.returncode == 128 + sent and not left
        assert err.strip().splitlines()[-1].startswith(f"segquant: ended by {sent.name}; the same command goes on")
    else:
        assert long.returncode == -signal.SIGKILL and len(left) == 1
    assert not list(tmp_path.glob("run/results.json"))
