"""Numbers beyond what makes sense, names that are none, and what is neither true nor false."""

from __future__ import annotations

from pathlib import Path

import pytest

from segquant import presets
from segquant_bench.pipelines.config.booleans import boolean_keys, check_booleans
from segquant_bench.pipelines.config.quantizer import build_method
from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.errors import PipelineError
from tests.pipelines.conftest import Command, compose_config


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("retries=100000000", "retries=100000000 is out of range; it must be from 0 to 1000"),
        ("correction=tac correction.clip=5", r"correction\.clip=5.0 is out of range; it must be from 0 to 1"),
        ("correction=affine correction.grid=100000", r"correction\.grid=100000 is out of range"),
        ("calibration=normal calibration.mean=5", r"calibration\.mean=5.0 is out of range; it must be from 0 to 1"),
        ("calibration=normal calibration.mean=-0.1", r"calibration\.mean=-0.1 is out of range"),
        ("calibration=loss calibration.prompts=4 calibration.pilot=100", "pilot=100 is more than the 4 prompts"),
        ("quantizer=q_diffusion quantizer.reconstruction.steps=1000000000000", "steps=1000000000000 must be at most"),
        ("quantizer=segquant_r quantizer.iterations=1000000000000", "iterations=1000000000000 must be at most 1000"),
    ],
)
def test_bounds(overrides: str, words: str) -> None:
    with pytest.raises(PipelineError, match=words):
        build_method(validate(compose_config(overrides.split())))


def test_what_is_just_within_them() -> None:
    given = ["retries=1000", "correction=tac", "correction.clip=1", "correction.grid=4096"]
    validate(compose_config([*given, "calibration=loss", "calibration.prompts=4", "calibration.pilot=4"]))
    validate(compose_config(["calibration=normal", "calibration.mean=1"]))
    validate(compose_config(["calibration.prompts=2"]))  # whose pilot of four is not used
    assert presets.q_diffusion(reconstruction={"steps": 1_000_000}) is not None


@pytest.mark.parametrize("key", ["precision.name", "model.name"])
@pytest.mark.parametrize("name", ["..", ".", "-", "--help", "a/b", "a b", "x" * 300 + "/"])
def test_names(key: str, name: str) -> None:
    with pytest.raises(PipelineError, match=f"{key}=.* cannot name a folder") as raised:
        validate(compose_config([f"{key}='{name}'"]))
    assert len(str(raised.value)) < 250


def test_a_name_is_no_reference_to_a_number() -> None:
    with pytest.raises(PipelineError, match=r"precision\.name refers to seed=0, which is no name"):
        validate(compose_config(["precision.name=${seed}"]))
    assert validate(compose_config(["precision.name=p_${seed}", "name=${seed}"])).precision.name == "p_0"
    assert validate(compose_config(["model.name=${model.dtype}"])).model.name == "float32"


@pytest.mark.parametrize(
    "argument",
    ["speed=2", "speed=1", "polarity=2", "polarity=yes", "correction.variance=2", "+report=off", "speed='true'",
     "speed=true,2", "model.call.clean_caption=1"],
)  # fmt: skip
def test_neither_true_nor_false(argument: str) -> None:
    with pytest.raises(PipelineError, match="is neither true nor false; write "):
        check_booleans([argument])


def test_true_and_false() -> None:
    assert {"speed", "polarity", "correction.variance", "precision.input.dynamic"} <= boolean_keys()
    check_booleans(["speed=true", "speed=True,false", "polarity=FALSE", "report=${speed}", "seed=2", "speed"])
    check_booleans(["model.call.clean_caption=null", "~speed"])


def test_the_command_refuses_them(command: Command, tmp_path: Path) -> None:
    outcome = command("speed=2", f"cache={tmp_path / 'cache'}")
    assert outcome.code == 1
    assert outcome.sentence == "segquant: speed=2 is neither true nor false; write speed=true or speed=false"
