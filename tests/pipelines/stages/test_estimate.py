"""What a run will take: from the stage in the cache that is most like, scaled; and what nobody knows is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.stages.benchmark import open_run
from segquant_bench.pipelines.stages.estimate import Estimate, estimate
from segquant_bench.pipelines.stages.run import Run
from tests.pipelines.conftest import Tiny, compose_config


def _run(tiny: Tiny, cache: Path, *more: str) -> Run:
    return open_run(validate(compose_config([*tiny.overrides(cache), *more])))


def _put(run: Run, name: str, seconds: float, change: Any = lambda record: None, key: str = "other") -> None:
    """Another finished stage of that name in the cache; `change` edits what it depends on."""
    record = json.loads(json.dumps(run.record(name)))
    change(record)
    folder = run.cache / "stage" / f"{name}-{key}"
    folder.mkdir(parents=True)
    (folder / "stage.json").write_text(json.dumps({"name": name, "depends": record, "seconds": seconds}))


def test_what_is_there_takes_no_time_and_what_nobody_knows_is_named(tiny: Tiny, cache: Path) -> None:
    found = estimate(_run(tiny, cache, "quantizer=rtn"))
    assert not found.seconds and list(found.unknown) == ["quantize", "generate", "evaluate"]
    assert found.sentence() == (
        "the cache has no stage like quantize, generate, evaluate: first batches will tell the time"
    )
    assert Estimate({}, ()).sentence() == ""


def test_the_most_similar_one_counts_scaled(tiny: Tiny, cache: Path) -> None:
    run = _run(tiny, cache, "quantizer=rtn")

    def twice(record: dict[str, Any]) -> None:
        record["depends"]["prompts"] *= 2

    def half(record: dict[str, Any]) -> None:
        record["depends"]["sampling"]["call"]["num_inference_steps"] /= 2

    def other_model(record: dict[str, Any]) -> None:
        record["depends"]["sampling"]["model"] = "another"

    _put(run, "generate", 100.0, twice, "a")
    assert estimate(run).seconds["generate"] == pytest.approx(50.0)
    _put(run, "generate", 7.0, other_model, "b")
    assert estimate(run).seconds["generate"] == pytest.approx(50.0)
    _put(run, "generate", 30.0, half, "c")
    before = estimate(run).seconds["generate"]
    assert before in (pytest.approx(50.0), pytest.approx(60.0)), "both differ in one value"
    _put(run, "generate", 44.0, key="d")
    assert estimate(run).seconds["generate"] == pytest.approx(44.0), "the same but for the code"


def test_pictures_are_compared_where_the_engine_is_the_same(tiny: Tiny, cache: Path) -> None:
    """An exported engine takes its time before the first picture."""
    _put(_run(tiny, cache, "quantizer=rtn", "run=cpu"), "generate", 5.0, key="a")
    for engine, known in (("openvino", False), ("reference", False), ("cpu", True)):
        found = estimate(_run(tiny, cache, "quantizer=rtn", f"run={engine}"))
        assert ("generate" in found.seconds) == known, engine


def test_a_method_is_compared_where_the_calibration_is_the_same(tiny: Tiny, cache: Path) -> None:
    run = _run(tiny, cache, "quantizer=rtn")

    def elsewhere(record: dict[str, Any]) -> None:
        record["needs"] = dict.fromkeys(record["needs"], "another")

    _put(run, "quantize", 3600.0, elsewhere, "a")
    assert "quantize" in estimate(run).unknown
    _put(_run(tiny, cache, "quantizer=gptq"), "quantize", 20.0, key="b")
    _put(_run(tiny, cache, "quantizer=rtn", "quantizer.convolutions=true"), "quantize", 2.0, key="c")
    found = estimate(run)
    assert found.seconds["quantize"] == 2.0, "rtn is more like rtn than gptq is"
    assert found.sentence() == (
        "about 2 s, as the most similar stages in the cache took: quantize 2 s; no such stage of generate, evaluate"
    )


def test_damaged_records_are_passed_over(tiny: Tiny, cache: Path) -> None:
    run = _run(tiny, cache, "quantizer=rtn")
    for key, text in {"a": "{", "b": "[]", "c": '{"name": "generate"}', "d": '{"name": 3, "depends": 4}'}.items():
        folder = run.cache / "stage" / f"generate-{key}"
        folder.mkdir()
        (folder / "stage.json").write_text(text)
    assert "generate" in estimate(run).unknown
