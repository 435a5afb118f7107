"""`run=…`: which settings go together, and what a configuration's hash counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from segquant_bench.pipelines.config.quantizer import build_method
from segquant_bench.pipelines.config.run_hash import config_hash
from segquant_bench.pipelines.config.schema import RunConfig, validate
from segquant_bench.pipelines.errors import PipelineError
from tests.pipelines.conftest import Tiny, compose_config


def _run(tiny: Tiny, *overrides: str) -> RunConfig:
    return validate(compose_config([*tiny.overrides(Path("cache")), *overrides]))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["run=cpu", "backend=mine"], "run=cpu and backend=mine both say what runs the quantized layers"),
        (["run=cpu", "quantizer=none"], "run=cpu runs quantized layers, and quantizer=none has none"),
        (
            ["run=cpu", "run.bfloat16=true"],
            "run=cpu has no setting run.bfloat16; of it may be set: run.fallback, run.attention",
        ),
        (
            ["run=ort", "run.attention=int8"],
            "run=ort has no setting run.attention; of it may be set: run.rest, run.every_cpu",
        ),
        (["run.attention=int8"], "run=auto has no setting run.attention"),
        (["run=cpu", "run.attention=int4"], "run.attention='int4' is not known"),
        (["run=openvino", "run.attention=float"], "run.attention='float' is not known"),
        (["run.fallback=reference"], "run=auto has no setting run.fallback; of it may be set: nothing"),
        (["run=reference", "run.rest=float"], "run=reference has no setting run.rest; of it may be set: nothing"),
        (["run=ort", "run.rest=maybe"], "run.rest='maybe' is not known"),
        (["run=ort", "model.offload=blocks"], "run=ort needs the whole denoiser in memory"),
    ],
)
def test_what_does_not_go_together_is_refused(tiny: Tiny, overrides: list[str], sentence: str) -> None:
    with pytest.raises(PipelineError, match=sentence.replace(".", r"\.")):
        _run(tiny, *overrides)


def test_another_tools_layers_are_compiled_but_not_exported(tiny: Tiny) -> None:
    run = _run(tiny, "quantizer=sdnq", "precision=w8a8_dynamic", "run=ort")
    with pytest.raises(PipelineError, match="quantizer=sdnq runs its own layers, which run=ort cannot"):
        build_method(run)
    for name in ("compile", "auto"):
        _run(tiny, "quantizer=sdnq", "precision=w8a8_dynamic", f"run={name}").check_reference()


def test_hash_counts_the_engine_and_its_settings_and_no_measurement(tiny: Tiny) -> None:
    def hashed(*overrides: str) -> str:
        return config_hash(_run(tiny, *overrides), "f", {})

    assert hashed() == hashed("run=auto") == hashed("speed=true", "+stages.speed.repeats=3")
    engines = (
        "auto",
        "reference",
        "cpu",
        "cpu run.fallback=reference",
        "cpu run.attention=int8",
        "openvino",
        "openvino run.bfloat16=true",
        "openvino run.attention=int8",
    )
    every = [hashed(*f"run={each}".split()) for each in engines]
    assert len(set(every)) == len(every)
    assert hashed("run=cpu", "backend=cpu") == hashed("run=cpu") == hashed("run=cpu", "run.attention=torch")
    assert hashed("run=openvino") == hashed("run=openvino", "run.attention=torch")


@pytest.mark.parametrize(
    "overrides",
    [["quantizer=none"], ["backend=cpu"], ["quantizer=sdnq", "precision=w8a8_dynamic"], ["model.offload=blocks"]],
)
def test_auto_has_the_hash_of_the_reference_where_no_machine_makes_other_bytes(
    tiny: Tiny, overrides: list[str]
) -> None:
    found = [config_hash(_run(tiny, *overrides, *more), "f", {}) for more in ([], ["run=reference"])]
    assert found[0] == found[1]


def test_name_says_the_engine(tiny: Tiny) -> None:
    assert _run(tiny, "quantizer=rtn").name == "rtn_w8a8_tensor"
    assert _run(tiny, "quantizer=rtn", "run=reference").name == "rtn_w8a8_tensor_reference"
    assert _run(tiny, "quantizer=rtn", "run=cpu").name == "rtn_w8a8_tensor_cpu"
