"""Runs that differ in any setting have different rows, told by the fewest settings."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from segquant_bench.eval.report.comparing.comparisons import compare_runs
from segquant_bench.eval.report.drawing.grid import grid_groups
from segquant_bench.eval.report.main_table.results_table import results_table
from segquant_bench.eval.report.runs.groups import sort_runs
from segquant_bench.eval.report.runs.labels import labels, places, setups
from segquant_bench.eval.report.runs.leaves import fewest, leaves, shown, told
from segquant_bench.eval.results import RunResult
from segquant_bench.pipelines.config.resolvers import register
from tests.pipelines.conftest import compose_config


def _run(job: int, config: Mapping[str, Any], **values: Any) -> RunResult:
    quantizer = config.get("quantizer", {}).get("_target_", "rtn").rpartition(".")[2]
    given: dict[str, Any] = {
        "name": "a", "model": "m", "quantizer": quantizer, "precision": "w8a8", "dataset": "d", "seed": 0,
        "config_hash": f"hash{job}", "config": dict(config), **values,
    }  # fmt: skip
    return RunResult(
        path=Path(f"/nowhere/{job}/results.json"), n_images=1, metrics=(), layer_errors={}, per_row_output_errors=(),
        output_error=None, stages={}, artifacts={}, prompts=("a",), weight_bytes=1, weight_bytes_float=1, **given,
    )  # fmt: skip


def _rows(runs: list[RunResult]) -> list[tuple[str, ...]]:
    names, where = labels(runs), places(runs)
    return [(where[id(run)], run.precision, names[id(run)]) for run in sort_runs(runs)]


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    """Of a whole run, with mappings of the user's own."""
    from omegaconf import OmegaConf

    register()
    composed = compose_config(
        [
            "quantizer=segquant_g", "logger=none", "++components.text_encoder.seglinear=false", "++stages.a.b=1",
            "++quantizer.overrides={*.norm1.linear: {precision: w8a8_dynamic}}", "quantizer.skip=[a, b]",
            "++model.scheduler_settings.shift=3",
        ]
    )  # fmt: skip
    found = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(found, dict)
    return found  # type: ignore[return-value]


def _others(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value, None, str(value)]
    if isinstance(value, int | float):
        return [value + 1, str(value), None]
    if value is None:
        return ["none", "null", 0, False]
    if isinstance(value, str):
        return [f"{value}x", f"{value}\n", f"{value} b=1", None]
    return [[*value, "c"], str(value)] if isinstance(value, list) else [{"new": 1}]


def _changed(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with another leaf, whose key may hold dots inside of it."""
    found = copy.deepcopy(config)
    place, rest = found, key
    while rest not in place:
        step = next(name for name in place if isinstance(place[name], dict) and rest.startswith(f"{name}."))
        place, rest = place[step], rest[len(step) + 1 :]
    place[rest] = value
    return found


def _leaf_changes(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in leaves(config).items():
        others = _others(value)
        yield from ((key, other) for other in others if other is not None or not key.endswith("_target_"))


def test_any_leaf_tells_two_runs_apart(config: dict[str, Any]) -> None:
    changes = list(_leaf_changes(config))
    assert len(changes) > 200
    for key, value in changes:
        runs = [_run(0, config), _run(1, _changed(config, key, value))]
        rows = _rows(runs)
        assert len(set(rows)) == 2, (key, value, rows)
        assert {len(" ".join(row)) < 120 for row in rows} == {True}, "one setting is told, not all"


def test_any_few_leaves_tell_many_runs_apart(config: dict[str, Any]) -> None:
    generator, changes = random.Random(0), list(_leaf_changes(config))
    for _ in range(40):
        configs = [config]
        for _ in range(generator.randint(1, 5)):
            made = config
            for key, value in generator.sample(changes, generator.randint(1, 3)):
                try:
                    made = _changed(made, key, value)
                except StopIteration:  # another change has replaced what it lay in
                    continue
            configs.append(made)
        distinct = [made for n, made in enumerate(configs) if made not in configs[:n]]
        rows = _rows([_run(job, made) for job, made in enumerate(distinct)])
        assert len(set(rows)) == len(distinct), rows


def test_only_what_tells_apart_is_told(config: dict[str, Any]) -> None:
    other = _changed(_changed(config, "metric.bootstrap", 7), "metric.seed", 1)
    names = labels([_run(0, config), _run(1, other)])
    assert list(names.values()) in (
        ["segquant_g bootstrap=1000", "segquant_g bootstrap=7"], ["segquant_g seed=0", "segquant_g seed=1"]
    )  # fmt: skip
    assert fewest([{"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 2, "c": 1}, {"a": 2, "b": 3, "c": 1}], "abc") == ["b"]
    assert told({"a.x": 1, "b.x": 2, "b.y": "t"}, ["a.x", "b.x", "b.y"]) == "a.x=1 b.x=2 y=t"
    texts = [None, "none", "null", "", " a", "a", "a b", 1, "1", 1.0, True, "true", [], "[]", {}, "unset", "a\nb"]
    assert len({shown(value) for value in texts} | {shown(None, is_set=False)}) == len(texts) + 1


def test_numbers_of_a_search_have_six_digits_where_these_tell_them_apart(config: dict[str, Any]) -> None:
    alphas = [0.5841694527491272, 0.5841694527491998, 0.1234567890123456, 0.5]
    runs = [_run(job, _changed(config, "quantizer.alpha", alpha)) for job, alpha in enumerate(alphas)]
    assert list(labels(runs[1:]).values()) == [f"segquant_g alpha={told}" for told in ("0.584169", "0.123457", "0.5")]
    assert list(labels(runs).values()) == [
        f"segquant_g alpha={told}" for told in ("0.5841694527491272", "0.5841694527491998", "0.123457", "0.5")
    ]
    key = "model.call.guidance_scale"
    runs = [_run(job, _changed(config, key, scale)) for job, scale in enumerate((4.123456789, 4.5))]
    assert list(setups(runs).values()) == ["call.guidance_scale=4.12346", "call.guidance_scale=4.5"]


def test_runs_sampled_otherwise_are_not_compared(config: dict[str, Any]) -> None:
    """Their unquantized models differ: each has its row, and pictures of one grid share a reference."""
    configs = [config, _changed(config, "model.call.num_inference_steps", 3)]
    runs = [_run(job, made, quantizer=name) for job, (made, name) in enumerate(
        (made, name) for made in configs for name in ("none", "rtn", "segquant_g"))]  # fmt: skip
    assert len(sort_runs(runs)) == 6 and len(grid_groups(runs)) == 2
    assert set(places(runs).values()) == {
        f"call.num_inference_steps={n}" for n in (leaves(config)["model.call.num_inference_steps"], 3)
    }
    table = results_table(runs)
    assert table.head[0] == "sampling" and len(table.groups) == 4
    assert len({tuple(cell.text for cell in line[:3]) for line in table.rows}) == 6
    comparisons, refused = compare_runs(runs)
    assert not comparisons and not refused


def test_grids_of_models_whose_names_differ_in_odd_characters_alone() -> None:
    runs = [_run(job, {}, model=name) for job, name in enumerate(("a/b", "a b", "a|b", "a" * 300))]
    groups = grid_groups(runs)
    assert len(groups) == 4 and max(map(len, groups)) < 220 and all("/" not in name for name in groups)


def test_overrides_are_told_beside_the_engine() -> None:
    """A layer's own precision changes the row's numbers; the engine alone would seem to."""
    overrides = {"*.norm1.linear": {"precision": "w8a8"}}
    runs = [
        _run(0, {"quantizer": {"overrides": {}}, "run": {"engine": "cpu"}}),
        _run(1, {"quantizer": {"overrides": overrides}, "run": {"engine": "auto"}}),
    ]
    plain, other = labels(runs).values()
    assert "overrides.*.norm1.linear.precision=w8a8" in other and "precision=none" in plain
