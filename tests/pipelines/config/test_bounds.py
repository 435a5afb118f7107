"""Numbers beyond what makes sense, names that are none, and what is neither true nor false."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from omegaconf import DictConfig, OmegaConf

from segquant_bench.pipelines.bounds import BOUNDS, within
from segquant_bench.pipelines.config.booleans import flags
from segquant_bench.pipelines.config.labels import LONGEST
from segquant_bench.pipelines.config.quantizer import build_method
from segquant_bench.pipelines.config.schema import RunConfig, validate
from segquant_bench.pipelines.errors import PipelineError
from tests.pipelines.conftest import Command, compose_config


@functools.cache
def _base(*overrides: str) -> DictConfig:
    found: DictConfig = compose_config([*overrides])
    return found


def _with(key: str, value: Any, overrides: Iterable[str] = ()) -> DictConfig:
    """Composed once for all values."""
    config = _base(*overrides).copy()
    OmegaConf.update(config, key, value, merge=False)
    return config


def _sections(schema: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    yield prefix, schema
    for name, hint in get_type_hints(schema).items():
        for each in (hint, *get_args(hint)):
            if is_dataclass(each) and not str(hint).startswith("dict"):
                yield from _sections(each, f"{prefix}{name}.")


def _numbers() -> Iterator[tuple[str, type]]:
    for prefix, schema in _sections(RunConfig, ""):
        for name, hint in get_type_hints(schema).items():
            kinds = {int, float} & {hint, *get_args(hint)}
            if kinds and name != "seed":  # which have a rule of their own
                yield f"{prefix}{name}", kinds.pop()


def test_every_number_of_a_run_has_bounds() -> None:
    numbers = dict(_numbers())
    assert len(numbers) > 25
    assert numbers.keys() == {key for key in BOUNDS if not key.startswith(("hydra.", "stages."))}
    for key, kind in numbers.items():
        assert all(type(each) is kind for each in BOUNDS[key]) and BOUNDS[key][0] < BOUNDS[key][1], key


SETTINGS = {
    "precision.weight.bits": ["precision=custom", "precision.weight.dtype=int8"],
    "precision.input.bits": ["precision=custom", "precision.weight.dtype=int8", "precision.input.dtype=int8"],
    "precision.weight.group_size": ["precision=custom", "precision.weight.dtype=int8"],
    "precision.input.group_size": ["precision=custom", "precision.weight.dtype=int8", "precision.input.dtype=int8"],
    "calibration.pilot": ["calibration=loss"],
}


@pytest.mark.parametrize("key", [key for key, _ in _numbers()])
def test_what_is_beyond_them(key: str) -> None:
    """Each end, and a little more."""
    least, most = BOUNDS[key]
    step: float = 1 if isinstance(least, int) else 1e-3 * (most - least)
    for value in (least - step, most + step):
        with pytest.raises(PipelineError, match=re.escape(f"{key}={value} is out of range")):
            validate(_with(key, value, SETTINGS.get(key, ())))
    within(key, least)
    within(key, most)


@pytest.mark.parametrize("value", ["x", None, True, [3], 1.5])
def test_what_is_no_number(value: Any) -> None:
    with pytest.raises(PipelineError, match=r"^hydra\.sweeper\.n_trials=.* is no whole number; give one from 1 to"):
        within("hydra.sweeper.n_trials", value)


def test_a_pilot_of_more_prompts_than_there_are() -> None:
    with pytest.raises(PipelineError, match="pilot=100 is more than the 4 prompts"):
        validate(compose_config(["calibration=loss", "calibration.prompts=4", "calibration.pilot=100"]))
    validate(compose_config(["calibration=loss", "calibration.prompts=4", "calibration.pilot=4"]))
    validate(compose_config(["calibration.prompts=2"]))  # whose pilot of four is not used


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("quantizer=q_diffusion quantizer.reconstruction.steps=1000000000000", "steps=1000000000000 must be at most"),
        ("quantizer=q_diffusion quantizer.reconstruction.rows=1000000000000", "rows=1000000000000 must be at most"),
        ("quantizer=q_diffusion quantizer.reconstruction.batch=1000000000000", "batch=1000000000000 must be at most"),
        ("quantizer=segquant_r quantizer.iterations=1000000000000", "iterations=1000000000000 must be at most 1000"),
        ("quantizer=svdquant quantizer.rank=1000000000", "rank=1000000000 must be at most 65536"),
    ],
)
def test_settings_of_quantizers(overrides: str, words: str) -> None:
    with pytest.raises(PipelineError, match=words):
        build_method(validate(compose_config(overrides.split())))


@pytest.mark.parametrize("key", ["precision.name", "model.name"])
@pytest.mark.parametrize(
    "name", ["..", ".", "-", "--help", ".hidden", "a/b", "a\\b", "a\tb", "a\x1bb", "a\nb", " a", "a ", "a:b", "a‮b",
             "x" * (LONGEST + 1), "x" * 300 + "/"],
)  # fmt: skip
def test_names_that_folders_cannot_have(key: str, name: str) -> None:
    with pytest.raises(PipelineError, match=f"{key}=.* cannot name a folder") as raised:
        validate(_with(key, name))
    assert len(str(raised.value)) < 250 and str(raised.value).isprintable()


@pytest.mark.parametrize("name", ["SD3.5 medium", "PixArt-Σ", "模型 1", "हिन्दी", "w4+a8", "x" * LONGEST])
def test_names_of_models_and_precisions(name: str) -> None:
    config = _with("model.name", name)
    config.precision.name = name
    run = validate(config)
    assert run.model.name == run.precision.name == name and name in run.name


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb"])
def test_a_run_of_two_lines(name: str) -> None:
    with pytest.raises(PipelineError, match="has a line break or a control character"):
        validate(_with("name", name))


@pytest.mark.parametrize("name", ["x" * 241, "模" * 81, f"a/{'x' * 500}"])
def test_a_name_that_no_folder_can_have(name: str) -> None:
    with pytest.raises(PipelineError, match=r"bytes long, and folders are named by it; give at most 240$") as caught:
        validate(_with("name", name))
    assert len(str(caught.value)) < 200
    assert validate(_with("name", name[:80])).name == name[:80]


def test_a_name_is_no_reference_to_a_number() -> None:
    with pytest.raises(PipelineError, match=r"precision\.name refers to seed=0, which is no name"):
        validate(compose_config(["precision.name=${seed}"]))
    assert validate(compose_config(["precision.name=p_${seed}", "name=${seed}"])).precision.name == "p_0"
    assert validate(compose_config(["model.name=${model.dtype}"])).model.name == "float32"


def _flags() -> list[str]:
    return [f"{prefix}{name}" for prefix, schema in _sections(RunConfig, "") for name in flags(schema)]


FORMATS = ["precision=custom", "precision.weight.dtype=int8", "precision.input.dtype=int8"]


@pytest.mark.parametrize("key", _flags())
def test_neither_true_nor_false(key: str) -> None:
    """Every key of this kind, of which no annotation is forgotten."""
    given = FORMATS if key.startswith("precision.") else ["run=ort"] if key.startswith("run.") else []
    for value in (2, "yes", "true", [True]):
        sentence = f"{key}={value} is neither true nor false; write {key}=true or {key}=false"
        with pytest.raises(PipelineError, match=f"^{re.escape(sentence)}$"):
            validate(_with(key, value, given))


def test_no_plain_bool_is_left() -> None:
    assert len(_flags()) > 14
    for _, schema in _sections(RunConfig, ""):
        assert not [item.name for item in dataclasses.fields(schema) if "bool" in str(item.type)]


def test_true_and_false() -> None:
    run = validate(compose_config(["speed=true", "polarity=FALSE", "report=${speed}"]))
    assert run.speed is True and run.polarity is False and run.report is True
    call = validate(compose_config(["model.call.clean_caption=null", "seed=2"])).model.call
    assert call.clean_caption is None
    with pytest.raises(PipelineError, match="^speed=null is neither true nor false"):
        validate(_with("speed", None))


TEXT = """# @package _global_
{key}: {{{name}: {value}}}
"""


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("quantizer.dualscale", "3", "quantizer.dualscale is 3; give True or False"),
        ("quantizer.dualscale", "maybe", "quantizer.dualscale is 'maybe'; give True or False"),
        ("quantizer.dualscale", '"yes"', "quantizer.dualscale is 'yes'; give True or False"),
        ("model.convolutions", '"on"', "model.convolutions=on is neither true nor false; write model.convolutions=true "
         "or model.convolutions=false"),
    ],
)  # fmt: skip
def test_the_command_and_a_file_say_the_same(
    command: Command, tmp_path: Path, key: str, value: str, sentence: str
) -> None:
    section, name = key.split(".")
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(TEXT.format(key=section, name=name, value=value))
    cache = f"cache={tmp_path / 'cache'}"
    for given in ([f"{key}={value}"], ["--config-dir", str(tmp_path / "own"), "experiment=mine"]):
        outcome = command(*given, cache)
        assert outcome.code == 1 and outcome.sentence == f"segquant: {sentence}", given
    assert not (tmp_path / "cache" / "stage").exists()
