"""Keys that take a name or a path, with an empty one: a sentence with the key and what there is, never the default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from segquant import Method
from segquant_bench.pipelines.config.quantizer import build_method, check_used
from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.loading.models import diffusers_class
from tests.pipelines.conftest import Tiny, compose_config


@pytest.fixture(scope="module")
def base(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> DictConfig:
    return compose_config(tiny.overrides(tmp_path_factory.mktemp("cache")))


def _refusal(base: DictConfig, key: str, value: Any) -> str:
    config = base.copy()
    OmegaConf.update(config, key, value)
    with pytest.raises((PipelineError, ValueError)) as caught:
        run = validate(config)
        check_used(run)
        build_method(run)
    told = str(caught.value)
    assert "\n" not in told and len(told) < 1300
    return told


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("precision.weight.dtype", "is empty; known are fp4_e2m1, .* int8, .*; give one of them, or null for floating"),
        ("precision.input.dtype", "is empty; known are fp4_e2m1, .*; give one of them, or null for floating point"),
        ("precision.weight.granularity", "is empty; known are channel, group, tensor, token; give one of them, or nu"),
        ("precision.input.scale_dtype", "is empty; known are bfloat16, .*; give one of them, or null for what follows"),
        ("model.dtype", "is not known; known are bfloat16, float16, float32"),
        ("run.name", "is not known; known are auto, "),
        ("name", "is empty; give it a value, for example a name, or leave name= out"),
        ("model.denoiser", "is empty"), ("model.scheduler", "is empty"), ("model.pipeline", "is empty"),
        ("model.revision", "is empty"), ("model.path", "is empty"), ("dataset.root", "is empty"),
        ("dataset.calibration_prompts", "is empty"), ("metric.backends.clip", "is empty"),
        ("metric.backends.inception", "is empty"), ("logger.project", "is empty"), ("backend", "is empty"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", ["", " "])
def test_empty_names(base: DictConfig, key: str, words: str, value: str) -> None:
    assert re.search(rf"^{re.escape(key)}(={value!r})? {words}", _refusal(base, key, value))


@pytest.mark.parametrize("key", ["negative", "columns", "smoothing"])
def test_an_empty_cut_is_not_the_engines(base: DictConfig, key: str) -> None:
    assert f"unknown {key} ''; known: " in _refusal(base, f"quantizer.{key}", "")
    with pytest.raises(ValueError, match=f"unknown {key} ''; known: "):
        Method.of("mine", "w8a8", **{"deploy": "onnx", key: ""})
    assert Method.of("mine", "w8a8", **{"deploy": "onnx", key: None}) == Method.of("mine", "w8a8", deploy="onnx")


def test_texts_that_may_be_empty(base: DictConfig) -> None:
    config = base.copy()
    OmegaConf.update(config, "model.call.negative_prompt", "")
    assert validate(config).model.call.negative_prompt == ""


def test_long_names_are_cut() -> None:
    with pytest.raises(PipelineError, match=r"^model\.scheduler=x{100} is no class of diffusers; ") as caught:
        diffusers_class("x" * 500, "model.scheduler")
    assert len(str(caught.value)) < 1300


def test_the_shipped_configuration_has_none(tiny: Tiny, tmp_path: Path) -> None:
    for extra in ([], ["quantizer=auto", "logger=wandb"], ["precision=custom", "calibration=loss"]):
        validate(compose_config([*tiny.overrides(tmp_path), *extra]))


@pytest.mark.parametrize("key", ["logger.tags", "quantize", "metric.metrics", "objective"])
def test_references_to_another_type(base: DictConfig, key: str) -> None:
    assert _refusal(base, key, "${seed}") == f"{key} refers to 0, which is no list; give one"
