"""Untrained pipelines of the families through the whole benchmark: sampled, calibrated, quantized, judged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from segquant import QuantLinear
from segquant_bench.eval import load_result
from segquant_bench.eval.report.main_table.columns import columns
from segquant_bench.eval.report.runs.labels import method_name
from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.results.write import build_results, read_json, write_results
from segquant_bench.pipelines.sampling.samples import Batches, load_samples
from segquant_bench.pipelines.stages.benchmark import open_run, run_all
from segquant_bench.pipelines.stages.components.quantize import quantized_components
from segquant_bench.pipelines.stages.quantize import quantized_denoiser
from segquant_bench.pipelines.stages.run import Run
from segquant_bench.pipelines.stages.shared.inputs import prompt_inputs
from tests.pipelines.conftest import Tiny, compose_config
from tests.tiny_families import tiny_family

FAMILIES = ("flux1_dev", "sdxl", "sd3_canny")


@dataclass(frozen=True)
class Family:
    """A tiny pipeline on disk: what a command line says to run it, and a cache of its own."""

    overrides: list[str]
    cache: Path

    def benchmark(self, *more: str) -> Run:
        return open_run(validate(compose_config([*self.overrides, f"cache={self.cache}", *more])))


def _family(name: str, tiny: Tiny, folder: Path) -> Family:
    run = [value for value in tiny.overrides(folder) if not value.startswith(("model", "cache"))]
    return Family([*tiny_family(name, folder), *run, "model.embeddings=live", "model.batch_size=4"], folder / "cache")


@pytest.fixture(scope="module")
def families(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Family]:
    return {name: _family(name, tiny, tmp_path_factory.mktemp(name)) for name in FAMILIES}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_goes_through_all_stages(name: str, families: dict[str, Family], tmp_path: Path) -> None:
    benchmark = families[name].benchmark("quantizer=smoothquant", "precision=w8a8_dynamic", "dataset.size=6")
    run_all(benchmark)
    results = build_results(benchmark, tmp_path)
    linears = {layer for layer, module in benchmark.denoiser.named_modules() if isinstance(module, nn.Linear)}
    assert linears <= results["layer_errors"].keys()
    assert 0 < results["output_error"] < 0.1
    metrics = {metric["name"]: metric["value"] for metric in results["metrics"]}
    assert 15 < metrics["psnr"] < 80
    assert results["weight_bytes"] < 0.6 * results["weight_bytes_float"]


@pytest.mark.parametrize("name", ["flux1_dev", "sd3_canny", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_segquant_beats_rounding_on_random_weights(name: str, families: dict[str, Family]) -> None:
    """At four bits, with cuts, scales per sign, GPTQ and a low-rank branch in every kind of layer."""
    errors = {}
    skip = ["quantizer.skip=[x_embedder]"] if name == "flux1_dev" else []  # it is 16 wide here
    for quantizer in ("rtn", "segquant_plus"):
        method = [f"quantizer={quantizer}", "precision=w4a8", *skip]
        benchmark = families[name].benchmark(*method)
        errors[quantizer] = read_json(benchmark.stage("quantize").path / "errors.json")
    assert errors["segquant_plus"]["layer_errors"].keys() == errors["rtn"]["layer_errors"].keys()
    ratio = errors["segquant_plus"]["output_error"] / errors["rtn"]["output_error"]
    assert ratio < 0.9  # widths of 64 with four prompts leave little to learn from


@pytest.mark.parametrize("name", FAMILIES)
def test_captured_inputs_give_what_the_pipeline_got(name: str, families: dict[str, Family]) -> None:
    """Prompts cut apart and put together again in other batches go through the denoiser as they did."""
    benchmark = families[name].benchmark()
    samples = load_samples(benchmark.stage("calibrate").path / "calibration")
    outputs = []
    for size in (1, 3):
        with torch.no_grad():
            found = [benchmark.denoiser(**batch)[0] for batch in Batches(samples, size)]
        outputs.append(torch.cat(found))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)


def test_positions_are_no_rows_even_where_there_are_as_many_as_prompts(tiny: Tiny, tmp_path: Path) -> None:
    """FLUX's positions have no row per prompt; eight text tokens and eight prompts look as if they had."""
    from segquant_bench.pipelines.sampling.collect import collect

    benchmark = _family("flux1_dev", tiny, tmp_path).benchmark()
    prompts = [f"prompt {index}" for index in range(8)]
    samples = collect(
        benchmark.pipeline, benchmark.denoiser, prompts, benchmark.config.model.call.arguments(),
        steps_per_prompt=1, seed=0, stream=1, batch_size=8, label="test",
    )  # fmt: skip
    for sample in samples:
        assert sample.shared["txt_ids"].shape == (8, 3)
        assert "img_ids" in sample.shared
        assert sample.rows["encoder_hidden_states"].shape[:2] == (1, 8)
        assert sample.rows["guidance"].shape == (1,)


def test_control_pictures_are_the_edges_of_the_real_ones(families: dict[str, Family]) -> None:
    from segquant_bench.pipelines.data.canny import control_picture

    benchmark = families["sd3_canny"].benchmark()
    inputs = prompt_inputs(benchmark, "evaluation")
    assert inputs is not None
    found = inputs(range(1, 4))
    assert found.keys() == {"control_image"} and len(found["control_image"]) == 3
    real = benchmark.dataset.read("evaluation", range(1, 4), (32, 32))
    for edges, picture in zip(found["control_image"], real, strict=True):
        assert edges.size == (32, 32)
        assert np.array_equal(np.asarray(edges), np.asarray(control_picture(picture)))
    other = prompt_inputs(benchmark, "calibration")(range(1, 4))["control_image"]
    assert any(a.tobytes() != b.tobytes() for a, b in zip(found["control_image"], other, strict=True))


def test_control_pictures_matter_and_pictures_repeat(families: dict[str, Family], tmp_path: Path) -> None:
    from segquant_bench.pipelines.sampling.generate import generate_images

    benchmark = families["sd3_canny"].benchmark("dataset.size=4")
    inputs, prompts = prompt_inputs(benchmark, "evaluation"), benchmark.dataset.evaluation
    call = benchmark.config.model.call.arguments()

    def blank(indices: range) -> dict:
        return {"control_image": [Image.new("RGB", (32, 32)) for _ in indices]}

    found = {}
    for name, given in (("first", inputs), ("again", inputs), ("blank", blank)):
        torch.rand(3)  # whatever was drawn before does not count
        generate_images(
            benchmark.pipeline, benchmark.denoiser, prompts, tmp_path / name, call,
            seed=0, batch_size=4, inputs=given,
        )  # fmt: skip
        found[name] = [(tmp_path / name / f"{index:05d}.png").read_bytes() for index in range(4)]
    assert found["first"] == found["again"]
    assert all(a != b for a, b in zip(found["first"], found["blank"], strict=True))


def test_denoiser_and_controlnet_quantized_together(families: dict[str, Family], tmp_path: Path) -> None:
    family = families["sd3_canny"]
    method = ["quantizer=segquant_g", "quantizer.alpha=0.5", "precision=w8a8_tensor"]
    alone, both = family.benchmark(*method), family.benchmark(*method, "quantize=[denoiser,controlnet]")
    run_all(alone)
    run_all(both)
    assert alone.stage("quantize").key == both.stage("quantize").key
    controlnet = quantized_components(both)["controlnet"]
    linears = [name for name, module in controlnet.named_modules() if isinstance(module, QuantLinear)]
    float_ones = [n for n, m in both.pipeline.controlnet.named_modules() if isinstance(m, nn.Linear)]
    assert sorted(linears) == sorted(float_ones)
    record = build_results(both, tmp_path)["components"]["controlnet"]
    assert 0 < record["output_error"] < 0.2 and record["weight_bytes"] < record["weight_bytes_float"]
    assert record["layer_errors"].keys() <= {f"controlnet.{name}" for name in linears}
    pictures = [
        (stage.path / "images" / "00000.png").read_bytes()
        for stage in (alone.stage("generate"), both.stage("generate"))
    ]
    assert pictures[0] != pictures[1]


def test_controlnet_quantized_alone(families: dict[str, Family], tmp_path: Path) -> None:
    """The denoiser stays as it is: no stage of its own, no error, its float bytes; the pictures are others."""
    family = families["sd3_canny"]
    method = ["quantizer=segquant_g", "quantizer.alpha=0.5", "precision=w8a8_tensor"]
    alone, both = (family.benchmark(*method, f"quantize=[{parts}]") for parts in ("controlnet", "denoiser,controlnet"))
    run_all(alone)
    assert not {"calibrate", "graph", "quantize"} & alone.finished.keys()
    assert alone.stage("components").key == both.stage("components").key
    rounded = family.benchmark("quantizer=rtn", "precision=w8a8_tensor", "quantize=[controlnet]")
    assert rounded.stage("component_inputs").cached  # inputs are captured once for all methods
    assert quantized_denoiser(alone) is alone.denoiser
    path = write_results(alone, tmp_path)
    run = load_result(path)
    assert (run.name, run.layer_errors, run.output_error) == ("segquant_g@controlnet_w8a8_tensor", {}, 0.0)
    assert run.weight_bytes == run.weight_bytes_float == run.components["transformer"]["weight_bytes"]
    assert run.components["controlnet"]["weight_bytes"] < 0.6 * run.components["controlnet"]["weight_bytes_float"]
    assert run.every_layer_error and all(name.startswith("controlnet.") for name in run.every_layer_error)
    shown = {column.key: column.cell(run) for column in columns([run])}
    assert 0 < shown["layer_error"].value < 0.2 and "output_error" not in shown
    assert shown["quantize_s"].value == pytest.approx(run.stages["components"]["seconds"])
    assert method_name(run) == "segquant_g@controlnet"
    pictures = [
        (stage.path / "images" / "00000.png").read_bytes()
        for stage in (alone.stage("generate"), alone.stage("reference"))
    ]
    assert pictures[0] != pictures[1]


def test_a_correction_is_fitted_with_control_pictures(families: dict[str, Family]) -> None:
    method = ["quantizer=rtn", "precision=w4a8", "correction=affine"]
    benchmark = families["sd3_canny"].benchmark(*method, "dataset.size=2")
    run_all(benchmark)
    assert (benchmark.stage("correct").path / "correction.json").is_file()


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("sd3_canny", ["model.control=null"], "needs control_image.*set model.control to a kind"),
        ("sd3_canny", ["model.control=cany"], "model.control='cany' is not known.*canny"),
        ("flux1_dev", ["model.control=canny"], "has no ControlNet"),
        ("sd3_canny", ["quantizer=rtn", "quantize=[denoiser,vae]"], "'vae'.*neither text encoder nor ControlNet"),
        ("flux1_dev", ["quantizer=rtn", "quantize=[denoiser,controlnet]"], "'controlnet', which FluxPipeline does not"),
        ("sd3_canny", ["dataset.fit=null", "model.call.height=48"], "is 32×32, 32×48 is wanted"),
    ],
)
def test_control_settings_that_do_not_fit(
    name: str, overrides: list[str], words: str, families: dict[str, Family]
) -> None:
    with pytest.raises(PipelineError, match=words):
        run_all(families[name].benchmark(*overrides))
