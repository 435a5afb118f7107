"""Pictures by the run's engine, and what is measured of it."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

import segquant
from segquant import presets
from segquant.deploy.onnx.manifest import Dimension, Input
from segquant.kernels.cpu.operators import why_not_exact
from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.stages import speed
from segquant_bench.pipelines.stages.benchmark import open_run
from segquant_bench.pipelines.stages.run import Run
from segquant_bench.pipelines.stages.shared import engine
from tests.pipelines.conftest import Command, Tiny, compose_config

needs_kernels = pytest.mark.skipif(why_not_exact() is not None, reason=f"the cpu backend {why_not_exact()}")


def _run(tiny: Tiny, *overrides: str) -> Run:
    return open_run(validate(compose_config([*tiny.overrides(Path("cache")), *overrides])))


def _psnr(results: dict) -> float:
    return float(next(metric["value"] for metric in results["metrics"] if metric["name"] == "psnr"))


@needs_kernels
def test_kernels_make_the_pictures_and_are_measured(command: Command, tiny: Tiny, cache: Path) -> None:
    plain = [*tiny.overrides(cache), "quantizer=rtn"]
    found, pictures = {}, {}
    speed, attention = ["run=cpu", "speed=true", "+stages.speed.repeats=3"], ["run=cpu", "run.attention=int8"]
    for name, more in (("reference", ["run=reference"]), ("cpu", speed), ("auto", []), ("int8", attention)):
        outcome = command(*plain, *more)
        assert outcome.code == 0, outcome.err
        found[name] = json.loads((outcome.folder / "results.json").read_text())
        pictures[name] = [path.read_bytes() for path in sorted((outcome.folder / "images").glob("*.png"))]
    reference, cpu, auto = found["reference"], found["cpu"], found["auto"]
    assert (auto["run"]["name"], auto["run"]["engine"], auto["run"]["reason"]) == ("auto", "cpu", "")
    assert auto["run"]["layers"] == cpu["run"]["layers"] and auto["run"]["reasons"] == {}
    assert pictures["auto"] == pictures["cpu"] and len(pictures["auto"]) == 4
    assert auto["metrics"] == cpu["metrics"] and auto["layer_errors"] == reference["layer_errors"]
    assert reference["run"]["name"] == "reference" and set(reference["run"]["layers"].values()) == {"reference"}
    assert cpu["run"]["name"] == "cpu" and set(cpu["run"]["layers"].values()) == {"cpu"}
    assert cpu["backend_layers"] == {"cpu": len(cpu["layer_errors"])}
    assert _psnr(cpu) == pytest.approx(_psnr(reference), rel=0.05), "the same model by other kernels"
    keys = {name: results["stages"]["generate"]["key"] for name, results in found.items()}
    assert len(set(keys.values())) == 4 and len({results["config_hash"] for results in found.values()}) == 4
    assert found["int8"]["run"]["attention"] == "int8" and "attention" not in cpu["run"]
    assert found["int8"]["run"]["layers"].items() > cpu["run"]["layers"].items()
    assert {*found["int8"]["run"]["layers"].values()} == {"cpu", "attention int8"}
    assert pictures["int8"] != pictures["cpu"] and _psnr(found["int8"]) == pytest.approx(_psnr(cpu), rel=0.05)
    assert cpu["stages"]["quantize"]["key"] == reference["stages"]["quantize"]["key"]
    assert reference["speed"] is None
    measured = cpu["speed"]["measured"]
    assert measured.keys() == {"run", "float32"} and measured["float32"]["speed"] == 1.0
    ours = measured["run"]
    assert ours["n"] == len(ours["every"]) == 3 and ours["seconds_per_step_minimum"] == min(ours["every"])
    assert ours["speed"] == measured["float32"]["seconds_per_step_minimum"] / ours["seconds_per_step_minimum"]
    assert 0 < ours["weights_mb"] < measured["float32"]["weights_mb"], "no float copy of the weights stays"
    assert 0 < cpu["speed"]["step_error"] < 0.2 and cpu["speed"]["calls_per_step"] == 1
    assert cpu["speed"]["file_bytes"] > 0 and cpu["speed"]["processor"]


def test_keys_count_the_engine_and_no_measurement(tiny: Tiny, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = _run(tiny, "quantizer=rtn", f"cache={cache}", "run=reference")
    measured = _run(tiny, "quantizer=rtn", f"cache={cache}", "run=reference", "speed=true")
    assert plain.key("generate") == measured.key("generate") and not plain.has("speed")
    keys = {_run(tiny, "quantizer=rtn", f"cache={cache}", f"run={name}").key("generate") for name in ("ort", "cpu")}
    assert len({plain.key("generate"), *keys}) == 3
    before = measured.key("speed")
    monkeypatch.setattr(speed.provenance, "processor_name", lambda: "another processor")
    assert _run(tiny, "quantizer=rtn", f"cache={cache}", "run=reference", "speed=true").key("speed") != before


REASONS = {
    "float": (["quantizer=none"], "quantizer=none quantizes nothing"),
    "backend": (["backend=cpu"], "backend=cpu runs the quantized layers"),
    "tool": (["quantizer=sdnq", "precision=w8a8_dynamic"], "quantizer=sdnq runs layers of its own"),
    "disk": (["model.offload=blocks"], "model.offload=blocks leaves the denoiser on disk"),
    "fp4": (["precision=nvfp4"], "the CPU's exact kernel multiplies integers or fp8, and fp4_e2m1 is neither"),
}


@pytest.mark.parametrize(("overrides", "reason"), REASONS.values(), ids=REASONS)
def test_auto_is_the_reference_where_kernels_have_nothing_to_run(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, overrides: list[str], reason: str
) -> None:
    monkeypatch.setattr(engine, "why_not_exact", lambda: pytest.fail("kernels are compiled for nothing"))
    run = _run(tiny, "quantizer=rtn", *overrides)
    assert (engine.engine_of(run).name, engine.why_reference(run)) == ("reference", reason)
    assert run.has("generate") is ("quantizer=none" not in overrides)


def test_formats_without_codes_are_told_by_the_method() -> None:
    """What overrides or a budget may change is not known beforehand."""
    reasons = {
        name: engine._why_no_codes(presets.rtn(name)) for name in ("nvfp4", "mxint8", "w8a8_asym", "w4a8_asym", "fp8")
    }
    assert reasons == {
        "nvfp4": "multiplies integers or fp8, and fp4_e2m1 is neither",
        "mxint8": "takes scales of inputs in float32, and these are e8m0",
        "w8a8_asym": "multiplies integers of a signed byte, which uint8 less its zero point exceeds; use int8",
        "w4a8_asym": None,
        "fp8": None,
    }
    assert engine._why_no_codes(presets.rtn("nvfp4", overrides={"*": {"precision": "w8a8"}})) is None


def _told(caplog: pytest.LogCaptureFixture, run: Run) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.INFO):
        engine.check_engine(run)
    return [record.message for record in caplog.records]


def test_auto_is_the_reference_where_kernels_cannot_run(
    tiny: Tiny, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its pictures are found in the same folder then; with kernels, in that of run=cpu and its fallback."""

    def made(*overrides: str) -> Run:
        return _run(tiny, "quantizer=rtn", f"cache={cache}", *overrides)

    monkeypatch.setattr(engine, "why_not_exact", lambda: None)
    run = made()
    assert _told(caplog, run) == [] and engine.why_reference(run) is None
    assert run.key("generate") == made("run=cpu", "run.fallback=reference").key("generate")
    run = made()
    run.__dict__["device"] = "cuda:0"  # a cached property
    told = "the model is on cuda:0, and the exact kernels are for the CPU"
    assert _told(caplog, run) == [f"run=auto is run=reference: {told}"]
    monkeypatch.setattr(engine, "why_not_exact", lambda: "needs a C++ compiler, and there is none")
    run = made()
    assert _told(caplog, run) == [
        "run=auto is run=reference: the CPU's exact kernel needs a C++ compiler, and there is none"
    ]
    assert run.key("generate") == made("run=reference").key("generate")
    assert made("speed=true").key("speed") == made("speed=true", "run=reference").key("speed")
    with pytest.raises(PipelineError, match="^run=cpu needs a C.. compiler, and there is none; .*run=reference$"):
        engine.check_engine(made("run=cpu"))


def test_results_say_what_auto_was(command: Command, tiny: Tiny, cache: Path) -> None:
    outcome = command(*tiny.overrides(cache), "quantizer=none")
    assert outcome.code == 0, outcome.err
    found = json.loads((outcome.folder / "results.json").read_text())["run"]
    assert found == {"name": "auto", "engine": "reference", "reason": "quantizer=none quantizes nothing"}


@needs_kernels
def test_auto_leaves_layers_without_a_kernel_to_the_reference(tiny: Tiny) -> None:
    model = nn.Sequential(OrderedDict(eight=nn.Linear(8, 8), wide=nn.Linear(8, 8)))
    wide = segquant.QuantScheme(segquant.QuantSpec("fp8", "channel"), segquant.QuantSpec("int8", "token", dynamic=True))
    method = {"name": "rtn", "precision": "w8a8_dynamic", "overrides": {"wide": {"precision": wide}}}
    segquant.quantize_(model, method, [(torch.ones(2, 8),)])
    placed = engine.place(_run(tiny, "quantizer=rtn"), model, {}, Path("nowhere"))
    assert placed.layers == {"eight": "cpu", "wide": "reference"}
    assert placed.reasons == {"wide": "multiplies codes of one kind, and these are fp8 and int8"}


def test_unquantized_model_has_pictures_of_another_engine(tiny: Tiny) -> None:
    assert not _run(tiny, "quantizer=none").has("generate")
    assert _run(tiny, "quantizer=none", "run=compile").has("generate")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["run=cuda"], "run=cuda needs an NVIDIA GPU, and the model is on cpu; the nearest is run=cpu"),
        (["run=ort", "model.dtype=bfloat16"], "run=ort computes in float32, and model.dtype=bfloat16"),
        (["run=ort", "precision=fp8"], "^run=ort: ort multiplies no fp8; use w8a8; or set run.rest=float$"),
        (
            ["run=openvino", "precision=w4a16_nf4"],
            "^run=openvino: openvino has no nf4; int4 is the nearest; or set run.rest",
        ),
        (
            ["run=cpu", "precision=nvfp4"],
            "^run=cpu multiplies integers or fp8, and fp4_e2m1 is neither; set run.fallback=",
        ),
        (
            ["run=openvino", "run.attention=int8", "quantizer=none"],
            "^run=openvino run.attention=int8 takes ranges from calibration inputs, and this run has none, since",
        ),
        (
            ["run=compile", "run.attention=int8", "model.device=meta"],
            "model.device='meta' cannot be used here; set model.device=cpu",
        ),
    ],
)
def test_what_cannot_run_here_is_refused_first(tiny: Tiny, overrides: list[str], sentence: str) -> None:
    with pytest.raises(PipelineError, match=sentence):
        engine.check_engine(_run(tiny, "model.device=cpu", *overrides))


def test_missing_package_is_named(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engine.PACKAGES, "ort", ("onnx", "no_such_package_at_all"))
    with pytest.raises(PipelineError, match=r"run=ort needs .*no_such_package_at_all; run pip install"):
        engine.check_engine(_run(tiny, "model.device=cpu", "run=ort"))


def test_a_last_batch_that_a_file_does_not_take_is_refused_before_sampling(tiny: Tiny) -> None:
    run, odd = (_run(tiny, "run=ort", "model.batch_size=2", f"dataset.size={size}") for size in (4, 3))
    two = Input("x", "float32", (Dimension("batch", 2), Dimension(None, 4)))
    one, guided = ({"x": torch.zeros(rows, 4)} for rows in (2, 4))
    engine._check_last_batch(run, two, one)
    engine._check_last_batch(odd, two, guided)  # with guidance there are two rows for a picture
    with pytest.raises(PipelineError, match=r"batches of 2…, and the last of 3 pictures has 1; set model\.batch_size"):
        engine._check_last_batch(odd, two, one)


@needs_kernels
def test_layers_that_an_engine_cannot_run_are_named(command: Command, tiny: Tiny, cache: Path) -> None:
    own = "+quantizer.overrides={time_text_embed.timestep_embedder.linear_1: {precision: w4a16_nf4}}"
    outcome = command(*tiny.overrides(cache), "quantizer=rtn", own, "run=cpu")
    assert outcome.code == 1
    assert "backend 'cpu' cannot run time_text_embed.timestep_embedder.linear_1 (" in outcome.sentence
    assert outcome.sentence.endswith("set run.fallback=reference")


def test_settings_of_the_stage_are_checked(tiny: Tiny) -> None:
    for given, sentence in (
        ({"repeat": 3}, "there is no key 'stages.speed.repeat'"),
        ({"repeats": 0}, r"stages\.speed\.repeats=0 is out of range"),
        ({"against": ["int3"]}, r"stages\.speed\.against='int3' is not known"),
        *(({"against": each}, "is no list of names") for each in (None, 5, [1], "float32", {"a": 1})),
        *(({"repeats": each}, "is no whole number") for each in (None, "x", [7], 1.5, 1e9, True)),
        ({"repeats": 10**10}, r"repeats=10000000000 is out of range; it must be from 1 to 10000"),
        ({"warmup": 1.0}, r"stages\.speed\.warmup=1\.0 is no whole number"),
        (5, "stages.speed=5 is no section"),
    ):
        with pytest.raises(PipelineError, match=sentence):
            speed.Settings.of(given)


class _Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.last = nn.Conv1d(1, 1, 1)


def test_blocks_are_compiled_one_by_one_else_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _Blocks()
    assert engine.compile_(model) == {"Linear": 2}
    assert all(block._compiled_call_impl is not None for block in model.blocks)
    assert model.last._compiled_call_impl is None
    whole = nn.Linear(4, 4)
    monkeypatch.setattr(torch, "compile", lambda forward: lambda x: forward(x) + 1)
    assert engine.compile_(whole) == {"Linear": 1}
    x = torch.ones(2, 4)
    assert torch.equal(whole(x), nn.functional.linear(x, whole.weight, whole.bias) + 1)


def test_places_that_leave_the_compiled_graph_are_counted() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return x + 1

    found: dict[str, dict] = {}
    for name, function in (("whole", torch.sin), ("broken", broken)):
        about = found.setdefault(name, {"compiled": 1})
        with engine.counting_breaks(about):
            torch.compile(function, backend="eager")(torch.ones(2))
    assert found == {"whole": {"compiled": 1, "graph_breaks": 0}, "broken": {"compiled": 1, "graph_breaks": 1}}


@pytest.mark.slow
@pytest.mark.parametrize("quantizer", ["torchao_int8_dynamic", "modelopt_int8"])
def test_other_tools_run_compiled(command: Command, tiny: Tiny, cache: Path, quantizer: str) -> None:
    """A minute: torch.compile. What leaves the graph is told; torchao's layers do not."""
    pytest.importorskip(quantizer.partition("_")[0])
    plain = [*tiny.overrides(cache), f"quantizer={quantizer}", "precision=w8a8_dynamic"]
    outcome = command(*plain, "run=compile", "speed=true")
    assert outcome.code == 0, outcome.err
    results = json.loads((outcome.folder / "results.json").read_text())
    assert (results["run"]["graph_breaks"] == 0) == quantizer.startswith("torchao")
    assert 0 < results["speed"]["step_error"] < 0.1 and results["speed"]["file_bytes"] is None
    held = {name: found["weights_mb"] for name, found in results["speed"]["measured"].items()}
    assert held["run"] < held["float32"] or quantizer.startswith("modelopt"), "ModelOpt simulates, on float weights"


@pytest.mark.slow
@pytest.mark.parametrize("quantizer", ["rtn", "none"])
@pytest.mark.parametrize("name", ["ort", "openvino", "compile"])
def test_other_engines_make_the_same_pictures(
    command: Command, tiny: Tiny, cache: Path, name: str, quantizer: str
) -> None:
    """Exports and compilers take a minute each."""
    for package in engine.PACKAGES.get(name, ()):
        pytest.importorskip(package)
    plain = command(*tiny.overrides(cache), f"quantizer={quantizer}")
    assert plain.code == 0, plain.err
    right = _psnr(json.loads((plain.folder / "results.json").read_text()))
    outcome = command(*tiny.overrides(cache), f"quantizer={quantizer}", f"run={name}", "speed=true")
    assert outcome.code == 0, outcome.err
    results = json.loads((outcome.folder / "results.json").read_text())
    assert _psnr(results) > 70 if quantizer == "none" else _psnr(results) == pytest.approx(right, rel=0.05)
    assert results["run"]["name"] == name and results["speed"]["measured"]["run"]["n"] == 7
    if name == "compile":
        assert sum(results["run"]["compiled"].values()) > 0 and results["run"]["graph_breaks"] == 0
    else:
        assert results["run"]["products"] and results["speed"]["file_bytes"] == results["run"]["file_bytes"]
        assert len(results["run"]["layers"]) == len(results["layer_errors"])
        if quantizer == "rtn":
            assert results["run"]["products"]["int8"] >= len(results["layer_errors"]), "of the compile that runs"


@pytest.mark.slow
def test_attention_in_codes_is_an_axis_of_openvino(command: Command, tiny: Tiny, cache: Path) -> None:
    for package in engine.PACKAGES["openvino"]:
        pytest.importorskip(package)
    found = {}
    for attention in ("torch", "int8"):
        plain = [*tiny.overrides(cache), "quantizer=rtn", "run=openvino", f"run.attention={attention}"]
        outcome = command(*plain)
        assert outcome.code == 0, outcome.err
        found[attention] = json.loads((outcome.folder / "results.json").read_text())
    coded, plain = found["int8"]["run"]["layers"], found["torch"]["run"]["layers"]
    assert coded.items() > plain.items() and "attention" not in found["torch"]["run"]
    assert {coded[name] for name in coded.keys() - plain.keys()} == {"openvino: attention int8"}
    assert len({results["stages"]["generate"]["key"] for results in found.values()}) == 2
    assert found["int8"]["metrics"] != found["torch"]["metrics"]
    assert _psnr(found["int8"]) == pytest.approx(_psnr(found["torch"]), rel=0.05)


def test_settings_of_the_stage_are_checked_where_it_measures_nothing(tiny: Tiny, tmp_path: Path) -> None:
    for override in ("+stages.speed.against=null", "+stages.speed.repeats=true", "+stages.speed=0"):
        config = validate(compose_config([*tiny.overrides(tmp_path), override]))
        with pytest.raises(PipelineError, match=r"stages\.speed"):
            open_run(config)
