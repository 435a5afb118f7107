"""One command, end to end, on the tiny pipeline."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from segquant_bench.eval import load_result
from tests.pipelines.conftest import Command, Tiny, compose_config

STAGES = {"reference", "calibrate", "graph", "polarity", "quantize", "generate", "evaluate"}


def _results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def _pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def test_results_hold_the_schema_and_survive_a_move(command: Command, tiny: Tiny, cache: Path, tmp_path: Path) -> None:
    outcome = command(*tiny.overrides(cache), "quantizer=segquant_g", "polarity=true")
    assert outcome.code == 0, outcome.err
    results = _results(outcome.folder)
    assert results["schema"] == 1
    assert (results["quantizer"], results["precision"], results["model"]) == (
        "segquant_g",
        "w8a8_tensor",
        "tiny_random",
    )
    assert results["n_images"] == len(results["prompts"]) == 4
    assert {metric["name"] for metric in results["metrics"]} == {"psnr", "ssim"}
    assert results["stages"].keys() == STAGES
    assert results["quantizing"] == ["graph", "quantize"], "SegLinear reads the graph, which costs it time"
    for stage in results["stages"].values():
        assert stage["seconds"] >= 0 and stage["peak_memory_mb"] > 10
    assert results["stages"]["reference"]["cached"] and not results["stages"]["generate"]["cached"]
    assert len(results["layer_errors"]) == results["layer_error"]["n"] > 20
    assert results["layer_error"]["mean"] == pytest.approx(np.mean(list(results["layer_errors"].values())))
    assert len(results["per_row_output_errors"]) == len(results["per_row_steps"]) == 2 * 2
    assert all(0 <= step < 4 for step in results["per_row_steps"])
    by_step = results["layer_step_errors"]
    assert by_step["steps"] == sorted(set(results["per_row_steps"]))
    assert by_step["layers"].keys() == results["layer_errors"].keys()
    for layer, errors in by_step["layers"].items():  # a layer's error is a mean of those at the steps
        assert 0.9999 * min(errors) <= results["layer_errors"][layer] <= 1.0001 * max(errors)
    assert results["statistics"]["segments"]["transformer_blocks.0.norm1.linear"]["output"] == [64] * 6
    polarity = results["statistics"]["polarity"]["transformer_blocks.0.ff.net.2"]
    assert polarity[0]["activation"] == "gelu" and 0 <= polarity[0]["mostly_negative"] <= 1
    assert results["weight_bytes"] < results["weight_bytes_float"]
    assert results["versions"]["torch"] and results["device"]["type"]
    moved = shutil.move(outcome.folder, tmp_path / "elsewhere")
    loaded = load_result(Path(moved) / "results.json")
    assert len(_pictures(loaded.folder("images"))) == len(_pictures(loaded.folder("reference"))) == 4


def test_second_run_does_no_model_work(
    command: Command, tiny: Tiny, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = command(*tiny.overrides(cache), "quantizer=rtn")
    assert first.code == 0, first.err
    before = _results(first.folder)
    last = (first.folder / "segquant.log").read_text().strip().splitlines()[-1]
    saved = Path(last.partition("segquant-export: ")[2])  # what the user is to ship
    assert (saved / "quantized.json").is_file() and saved.name == "denoiser", last
    monkeypatch.setattr(
        "segquant_bench.pipelines.loading.assemble.assemble", lambda *_: pytest.fail("the pipeline was loaded")
    )
    monkeypatch.setattr(
        "segquant_bench.pipelines.runtime.cache._compute", lambda *_: pytest.fail("a stage was computed")
    )
    second = command(*tiny.overrides(cache), "quantizer=rtn")
    assert second.code == 0, second.err
    after = _results(second.folder)
    assert all(stage["cached"] for stage in after["stages"].values())
    for name, stage in after["stages"].items():
        assert stage["seconds"] == before["stages"][name]["seconds"]
    for key in ("metrics", "layer_errors", "config_hash"):
        assert after[key] == before[key]


def test_unquantized_run_is_its_own_reference(command: Command, tiny: Tiny, cache: Path) -> None:
    outcome = command(*tiny.overrides(cache), "quantizer=none")
    assert outcome.code == 0, outcome.err
    results = _results(outcome.folder)
    assert results["layer_errors"] == {} and results["output_error"] == 0.0
    assert results["per_row_steps"] == [] and results["statistics"] is results["layer_step_errors"] is None
    assert results["artifacts"]["images"] == results["artifacts"]["reference"]
    assert results["stages"].keys() == {"reference", "evaluate"}
    psnr = next(metric for metric in results["metrics"] if metric["name"] == "psnr")
    assert math.isinf(float(psnr["value"]))
    assert results["weight_bytes"] == results["weight_bytes_float"]


def test_same_seed_same_bytes_other_seed_other_bytes(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    found = []
    for number, seed in enumerate((3, 3, 4)):
        overrides = [*tiny.overrides(tmp_path / f"cache{number}"), "quantizer=rtn", f"seed={seed}"]
        outcome = command(*overrides)
        assert outcome.code == 0, outcome.err
        found.append((_pictures(outcome.folder / "images"), _pictures(outcome.folder / "reference")))
        shutil.rmtree(outcome.folder)
    assert found[0] == found[1]
    assert all(found[0][kind][name] != found[2][kind][name] for kind in (0, 1) for name in found[0][0])


def test_seglinear_is_a_toggle(command: Command, tiny: Tiny, cache: Path) -> None:
    errors = {}
    for value in ("true", "false"):
        outcome = command(*tiny.overrides(cache), "quantizer=segquant_a", f"quantizer.seglinear={value}")
        assert outcome.code == 0, outcome.err
        errors[value] = _results(outcome.folder)
    assert errors["true"]["config"]["quantizer"]["seglinear"] is True
    assert errors["true"]["layer_errors"] != errors["false"]["layer_errors"]
    assert errors["true"]["stages"]["calibrate"]["key"] == errors["false"]["stages"]["calibrate"]["key"]
    assert errors["true"]["config_hash"] != errors["false"]["config_hash"]


def test_config_hash_knows_no_paths_and_no_logger(tiny: Tiny, tmp_path: Path) -> None:
    from segquant_bench.pipelines.config.run_hash import config_hash
    from segquant_bench.pipelines.config.schema import validate

    def hash_of(*extra: str) -> str:
        return config_hash(validate(compose_config([*tiny.overrides(tmp_path / "a"), *extra])), "model", {})

    base = hash_of()
    assert base == hash_of("logger=wandb", "cache=/elsewhere", "name=other", "model.path=/other", "report=false")
    assert base != hash_of("seed=1")
    assert base != hash_of("quantizer.alpha=0.5")
    assert base != hash_of("metric.metrics=[psnr]")
    assert hash_of("quantizer=none") == hash_of("quantizer=none", "precision=w4a8")


def test_config_hash_knows_the_prompts_of_files_of_one_name(tiny: Tiny, tmp_path: Path) -> None:
    from segquant_bench.pipelines.config.run_hash import config_hash
    from segquant_bench.pipelines.config.schema import validate
    from segquant_bench.pipelines.data.datasets import load_dataset

    def hash_of(folder: str, words: str, *extra: str) -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "t.csv").write_text("prompt\n" + "".join(f"{words} {i}\n" for i in range(12)))
        data = [f"dataset.table={tmp_path}/{folder}/t.csv", "dataset.size=2", "dataset.pictures=false"]
        tiny_run = [item for item in tiny.overrides(tmp_path) if not item.startswith("dataset")]
        run = validate(compose_config([*tiny_run, "dataset=folder", *data, *extra]))
        return config_hash(run, "model", load_dataset(run.dataset, run.calibration).record)

    assert hash_of("a", "red") == hash_of("b", "red") != hash_of("b", "blue")
    float_hash = hash_of("a", "red", "quantizer=none")
    assert float_hash == hash_of("a", "red", "quantizer=none", "calibration.seed=5")


def test_real_pictures_are_unpacked_once_and_unchanged(tiny: Tiny, tmp_path: Path) -> None:
    import zipfile

    from segquant_bench.pipelines.config.schema import validate
    from segquant_bench.pipelines.stages.benchmark import open_run
    from segquant_bench.pipelines.stages.real import judges_real

    overrides = [*tiny.overrides(tmp_path), "metric.metrics=[fid_gt]"]
    first, second = (open_run(validate(compose_config([*overrides, f"seed={seed}"]))) for seed in (0, 1))
    assert judges_real(first.config)
    real = sorted((first.stage("real").path / "images").glob("*.png"))
    assert len(real) == 8
    with zipfile.ZipFile(tiny.archive) as archive:
        assert [path.read_bytes() for path in real] == [archive.read(item.member) for item in first.dataset.real]
    assert second.stage("real").cached and second.stage("real").path == first.stage("real").path
