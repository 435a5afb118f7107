"""Progress: paces, lines and values, on a clock that the test moves."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import pytest

from segquant_bench.bars import Advance, tell
from segquant_bench.durations import spoken
from segquant_bench.pipelines.runtime import watch as module
from segquant_bench.pipelines.runtime.cache import run_stage
from segquant_bench.pipelines.runtime.finished import Finished
from segquant_bench.pipelines.runtime.rate import Rate
from segquant_bench.pipelines.runtime.watch import Watch, followed


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def _finished(name: str) -> Finished:
    return Finished(name, "key", Path("/nowhere"), 1.0, 1.0, None, cached=False)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "under 1 s"), (0.51, "1 s"), (99.4, "99 s"), (99.5, "2 min"), (3569, "59 min"),
        (3571, "1 h"), (4800, "1 h 20 min"), (86_400, "1 d"), (86_390, "1 d"), (2 * 86_400 + 3 * 3600, "2 d 3 h"),
    ],
)  # fmt: skip
def test_durations(seconds: float, words: str) -> None:
    assert spoken(seconds) == words


def test_a_pace_knows_what_was_there_already() -> None:
    """Batches of a run that was killed pass at once: neither their pictures nor their time count."""
    rate = Rate(Advance("g", 0, 100, "picture"), 0.0)
    assert rate.per_second is None and rate.left(5.0) is None
    for done, when in ((16, 0.001), (32, 0.002), (48, 8.002), (64, 16.002)):
        rate.add(Advance("g", done, 100, "picture"), when)
    assert rate.per_second == pytest.approx(2.0)
    assert rate.left(16.002) == pytest.approx(18.0) and rate.left(20.002) == pytest.approx(14.0)
    assert rate.left(1000.0) == 0.0


def test_a_loop_of_unknown_length_has_a_pace_and_no_end() -> None:
    rate = Rate(Advance("g", 0, 0, ""), 0.0)
    rate.add(Advance("g", 4, 0, ""), 2.0)
    assert rate.per_second == 2.0 and rate.left(2.0) is None


def test_another_loop_begins_again() -> None:
    rate = Rate(Advance("observe", 3, 8, ""), 0.0)
    assert rate.follows(Advance("observe", 4, 8, "")) and not rate.follows(Advance("observe", 2, 8, ""))
    assert not rate.follows(Advance("quantize", 4, 8, "")) and not rate.follows(Advance("observe", 4, 9, ""))


def _watch(clock: Clock, **given: object) -> tuple[Watch, list[str], list[Mapping[str, float]]]:
    lines: list[str] = []
    values: list[Mapping[str, float]] = []
    return Watch(tell=lines.append, values=values.append, clock=clock, **given), lines, values  # type: ignore[arg-type]


def test_lines_of_a_sampling_stage() -> None:
    clock = Clock()
    watch, lines, values = _watch(clock, prefix="job 3 of 12: ")
    watch.stage_began("generate")
    watch.advanced(Advance("rtn", 0, 128, "picture"))
    watch.look()
    assert not lines
    clock.now += 4
    watch.advanced(Advance("rtn", 16, 128, "picture"))
    assert lines == ["job 3 of 12: generate: rtn, 16 of 128 pictures, 4 a second, about 28 s left"], "the first batch"
    for _ in range(40):
        clock.now += 1
        watch.look()
    assert len(lines) == 2, "one line in 30 s"
    assert lines[1] == "job 3 of 12: generate: rtn, 16 of 128 pictures, 4 a second, nearly done"
    assert values[-1]["progress/pictures_per_second"] == 4 and values[-1]["progress/share_of_stage"] == 0.125
    assert values[-1]["progress/seconds"] == pytest.approx(44, abs=10) and values[-1]["progress/memory_mb"] > 1
    watch.stage_ended(_finished("generate"))
    clock.now += 100
    watch.look()
    assert len(lines) == 2, "nothing computes"


def test_what_is_quick_is_not_foretold() -> None:
    clock = Clock()
    watch, lines, _ = _watch(clock)
    watch.stage_began("generate")
    for done in range(0, 33, 16):
        watch.advanced(Advance("rtn", done, 32, "picture"))
        clock.now += 0.5
    assert not lines


def test_lines_of_a_stage_that_counts_nothing() -> None:
    clock = Clock()
    watch, lines, _ = _watch(clock, expected={"evaluate": 60.0})
    watch.stage_began("evaluate")
    for _ in range(3):
        clock.now += 31
        watch.look()
    assert lines == [
        "evaluate: 31 s so far, about 29 s left (one like it took 60 s)",
        "evaluate: 62 s so far, longer than expected (one like it took 60 s)",
        "evaluate: 93 s so far, longer than expected (one like it took 60 s)",
    ]


def test_a_need_within_a_stage_is_told_of_and_forgotten() -> None:
    clock = Clock()
    watch, lines, _ = _watch(clock)
    watch.stage_began("quantize")
    watch.stage_began("embeddings")
    watch.advanced(Advance("encode", 0, 4, "picture"))
    watch.stage_broke("embeddings")
    clock.now += 30
    watch.look()
    assert lines == ["quantize: 30 s so far"]


def test_stages_and_bars_are_heard_and_only_within(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINES", 0.0)
    heard: list[Mapping[str, float]] = []
    clock = Clock()
    watch = Watch({"generate": 5.0}, values=heard.append, clock=clock)

    def compute(folder: Path) -> None:
        tell(Advance("generate", 2, 4, "picture"))
        watch.look()

    with caplog.at_level(logging.INFO), followed(watch):
        run_stage("generate", tmp_path, {}, compute)
    run_stage("reference", tmp_path, {}, compute)
    told = [record.message for record in caplog.records if record.name == module.__name__]
    assert told and set(told) == {"generate: 2 of 4 pictures, about 5 s left (one like it took 5 s)"}, (
        "not of the second"
    )
    assert len(heard) == 1 and "progress/seconds" in heard[0]


def test_a_stage_that_breaks_is_no_longer_computed(tmp_path: Path) -> None:
    clock = Clock()
    watch, lines, _ = _watch(clock)

    def compute(folder: Path) -> None:
        raise ValueError("broken")

    with followed(watch), pytest.raises(ValueError, match="broken"):
        run_stage("generate", tmp_path, {}, compute)
    clock.now += 60
    watch.look()
    assert not lines
