"""Experiments: every job of every sweep composes and can be done, and says what its table needs."""

from __future__ import annotations

from functools import cache
from itertools import product

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

import segquant
from benchmarks import pages
from segquant import presets
from segquant.method.parts import DEPLOY
from segquant_bench.pipelines.config.dataset import DatasetConfig
from segquant_bench.pipelines.config.quantizer import build_method
from segquant_bench.pipelines.config.resolvers import register
from segquant_bench.pipelines.config.schema import RunConfig, validate
from segquant_bench.pipelines.config.sections import CalibrationConfig
from segquant_bench.pipelines.data.datasets import load_dataset
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.main import CONF
from tests.pipelines.conftest import Tiny
from tests.pipelines.peers.support import CAN

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
QUANTIZERS = {path.stem for path in (CONF / "quantizer").glob("*.yaml")}
PRECISIONS = {path.stem for path in (CONF / "precision").glob("*.yaml")}
EMBEDDED = {"emoji_sd3", "emoji_flux", "emoji_sdxl", "emoji_sd3_canny"}
ON = {"families": EMBEDDED, "layouts": EMBEDDED, "formats": {"emoji_sd3", "emoji_sdxl"}}
"""Models of experiments; of others emoji_sd3 alone."""
OF_FORMATS = {"modelopt_fp8", "torchao_fp8", "torchao_intx", "torchao_mx", "torchao_nvfp4", "gguf"}
OF_FORMATS |= {"bnb_nf4", "bnb_fp4", "bnb_int8"}
"""Other tools of which the main comparison has none."""
HELD_BY_HAND = {"plan"}  # needs the file of an earlier run


@cache
def _jobs(experiment: str) -> list[list[str]]:
    """The overrides of every job, the experiment itself included."""
    return [[f"experiment={experiment}", *job] for job in pages.jobs(experiment)]


def _values(experiment: str, *keys: str) -> set[tuple[str, ...]]:
    """The values that the jobs give to some keys."""
    jobs = [dict(item.split("=", 1) for item in job) for job in _jobs(experiment)]
    return {tuple(job.get(key, "").lower() for key in keys) for job in jobs}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_job_composes_and_can_be_done(experiment: str) -> None:
    """Composed once for all precisions and seeds, which differ in nothing else: composing takes a tenth of a second."""
    precisions: dict[tuple[str, ...], list[str]] = {}
    for job in _jobs(experiment):
        rest = tuple(item for item in job if not item.startswith(("precision=", "calibration.seed=")))
        precisions.setdefault(rest, []).extend(
            item.removeprefix("precision=") for item in job if item.startswith("precision=")
        )
    runs = []
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        for overrides, names in precisions.items():
            run = validate(compose("config", overrides=list(overrides)))
            runs.append(run)
            for name in names or [run.precision.name]:
                assert name in PRECISIONS
                run.quantizer["precision"] = name
                _can_be_done(run)
    assert {run.model.name for run in runs} == ON.get(experiment, {"emoji_sd3"})
    assert len({run.dataset.size for run in runs}) == 1
    _prompts_suffice(runs)


def _can_be_done(run: RunConfig) -> None:
    """Another tool need not be installed; what it refuses for any other reason is a fault of the experiment."""
    try:
        build_method(run)
    except PipelineError as error:
        if "[peers]" not in str(error):
            raise


def _prompts_suffice(runs: list[RunConfig]) -> None:
    largest = max(runs, key=lambda run: run.calibration.prompts)
    dataset = load_dataset(largest.dataset, largest.calibration)
    assert len(dataset.evaluation) == largest.dataset.size


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_results_lie_under_the_experiments_name(experiment: str) -> None:
    register()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = compose("config", overrides=[f"experiment={experiment}"], return_hydra_config=True)
    assert config.hydra.sweep.dir == f"outputs/sweeps/{experiment}"


def test_main_and_formats_have_every_method_and_precision() -> None:
    pairs, formats = _values("main", "quantizer", "precision"), _values("formats", "quantizer", "precision")
    assert {quantizer for quantizer, _ in pairs | formats} == QUANTIZERS - HELD_BY_HAND
    six = {"w8a8_tensor", "w8a8", "w8a8_dynamic", "w4a8_channel", "w4a8", "w4a4"}
    assert {precision for _, precision in pairs} - {""} == six
    of_tools = {precision for able in CAN.values() for precision in able}
    assert {"fp8", "w4a16"} | of_tools - six <= {precision for _, precision in formats} <= PRECISIONS | {""}
    everywhere = {"segquant_a", "segquant_g", "segquant_plus", "segquant_r", "auto", "rtn", "gptq", "quarot"}
    strong = {"gptq_mse", "quarot_mse", "smoothquant_gptq"}
    assert pairs >= set(product(everywhere | strong, six))
    assert pairs >= set(product(["svdquant_gptq"], ("w4a8_channel", "w4a8", "w4a4"))) | {("convrot", "w8a8_dynamic")}
    assert {name for name, _ in pairs} >= CAN.keys() - OF_FORMATS
    assert pairs | formats >= {(name, precision) for name in OF_FORMATS for precision in CAN[name]}
    budgets = "quantizer.budget.average_bits", "quantizer.budget.bytes"
    mixed = _values("main", "quantizer", "precision", *budgets, "calibration.seed")
    assert len(_jobs("main")) == len(mixed), "no job twice"
    assert {(name, bits) for name, _, bits, *_ in mixed if bits} == {("auto", "4.5")}
    assert validate(_composed("main")).dataset.size == 128
    seeds = {(name, precision, size): {row[-1] for row in mixed if (row[0], row[1], row[3]) == (name, precision, size)}
             for name, precision, _, size, _ in mixed}  # fmt: skip
    compared = {name for (name, _, _), found in seeds.items() if len(found) > 1}
    assert all(found == {"", "1", "2"} for found in seeds.values() if len(found) > 1)
    assert compared == {
        *everywhere - {"gptq", "quarot"},
        *strong,
        "svdquant_gptq",
        "gptq_mixed",
        "modelopt_smoothquant",
        "modelopt_svdquant",
    }
    assert {seeds["gptq_mixed", p, size] == {"", "1", "2"} for p in ("w4a8", "w4a4") for size in ("", "1.1")} == {True}


def test_every_format_meets_every_kind_of_method_under_three_seeds() -> None:
    found = _values("formats", "model", "quantizer", "precision", "calibration.seed")
    assert len(found) == len(_jobs("formats")), "no job twice"
    not_dividing = {"w4a4", "w4a16", "w4a16_nf4", "w3a16", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k"}
    static = {name for name, scheme in segquant.PRECISIONS.items() if scheme.static_input}
    for model, lacking in (("emoji_sd3", set[str]()), ("emoji_sdxl", not_dividing)):
        for quantizer in ("rtn", "gptq_mse", "segquant_plus", "auto"):
            have = {(p, seed) for m, q, p, seed in found if (m, q) == (model, quantizer) and seed}
            missing = set()
            for precision in PRECISIONS - {"custom"}:
                seeds = range(3) if quantizer != "rtn" or precision in static else range(1)  # else rounding needs none
                missing |= {precision} if not {(precision, str(seed)) for seed in seeds} <= have else set()
            assert missing == lacking


def _composed(experiment: str) -> DictConfig:
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return compose("config", overrides=[f"experiment={experiment}"])


def test_table4_has_each_alone_and_together_on_both_granularities() -> None:
    toggles = _values("table4", "precision", "quantizer.seglinear", "quantizer.dualscale")
    assert toggles == set(product(("w8a8_tensor", "w8a8"), ("false", "true"), ("false", "true")))


def test_table6_has_the_controls() -> None:
    found = _values("table6", "quantizer.seglinear", "quantizer.cuts", "quantizer.seed")
    assert found == {("false", "", ""), ("true", "graph", ""), ("true", "wrong", "")} | {
        ("true", "random", str(seed)) for seed in range(3)
    }


def test_families_differ_in_nothing_but_the_model() -> None:
    """Every model has the same methods and precisions, the ControlNet's for each choice of components."""
    jobs = [dict(item.split("=", 1) for item in job) for job in _jobs("families")]
    ours = set(product(("rtn", "smoothquant", "segquant_g", "segquant_plus", "segquant_r"), ("w8a8_tensor", "w4a8")))
    strong = {*product(("gptq_mse", "quarot_mse"), ("w8a8_tensor", "w4a8"))}
    strong |= {("smoothquant_gptq", "w8a8_tensor"), ("svdquant_gptq", "w4a8")}
    methods = {("none", None), *ours, *strong}
    found: dict[tuple[str, str], set[tuple[str, str | None]]] = {}
    for job in jobs:
        key = job["model"], job.get("quantize", "[denoiser]")
        found.setdefault(key, set()).add((job["quantizer"], job.get("precision")))
    controlled = {("emoji_sd3_canny", parts) for parts in ("[controlnet]", "[denoiser,controlnet]")}
    assert found.keys() == {(model, "[denoiser]") for model in EMBEDDED} | controlled
    assert all(found[key] == (ours if key in controlled else methods) for key in found)
    assert {key for job in jobs for key in job} == {"experiment", "model", "quantize", "quantizer", "precision"}


def test_the_ablation_ends_at_the_named_presets() -> None:
    """Every job is a method of its own, and among them are the published ones, what was added, and the strong ones."""
    runs = [validate(_composed_of(job)) for job in _jobs("ablation")]
    methods = [build_method(run) for run in runs]
    told = [(run.is_float, method.changed(name="m")) for run, method in zip(runs, methods, strict=True)]
    assert len(told) == len(_jobs("ablation")) and all(told.count(each) == 1 for each in told), "no job twice"
    for precision in ("w8a8_tensor", "w4a8"):
        branch = ("svdquant_gptq",) if precision == "w4a8" else ()
        named = ("segquant_a", "segquant_g", "segquant_plus", "smoothquant_gptq", "gptq_mse", "quarot_mse", *branch)
        for name in named:
            assert getattr(presets, name)(precision, convolutions=False) in methods, (name, precision)


def _composed_of(job: list[str]) -> DictConfig:
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return compose("config", overrides=job)


def test_layouts_are_those_of_every_engine_beside_the_papers() -> None:
    """A shift is for static inputs; 4 bits have no engine that wants one scale."""
    found = _values("layouts", "precision", "quantizer.negative", "quantizer.columns")
    pairs = {(cuts["negative"], cuts["columns"]) for cuts in DEPLOY.values()}
    for precision in ("w8a8", "w8a8_tensor"):
        assert pairs <= {(n, c) for name, n, c in found if name == precision}
    assert {(n, c) for name, n, c in found if name == "w4a8"} == set(
        product(("dual", "zero_point"), ("pieces", "fold"))
    )
    assert {job[0] for job in _values("layouts", "model")} == EMBEDDED


def test_other_tools_are_measured_compiled_and_not() -> None:
    found = _values("peers", "quantizer", "run")
    tools = {name: {run for other, run in found if other == name} for name, _ in found if name in CAN}
    assert len(tools) >= 9 and all(runs == {"reference", "compile"} for runs in tools.values())
    assert {("segquant_a", "cpu"), ("segquant_a", "compile"), ("none", "compile")} <= found


def test_calibration_size_is_searched_and_fixed_at_three_sizes() -> None:
    found = _values("calibration_size", "quantizer.alpha", "calibration.prompts")
    assert found == set(product(("0.5", "search"), ("4", "32", "256")))


def test_held_out_prompts_do_not_depend_on_the_number_of_calibration_prompts(tiny: Tiny) -> None:
    data = DatasetConfig(name="tiny", archive=str(tiny.archive))
    few, many = (load_dataset(data, CalibrationConfig(name="uniform", prompts=n, held_out=2)) for n in (2, 6))
    assert few.held_out == many.held_out and many.calibration[:2] == few.calibration
    assert not set(many.calibration) & set(many.held_out)
