"""Every ingredient is offered to every method that it fits, alike from Python and from the command line."""

from __future__ import annotations

import typing
from typing import Any

import pytest
import yaml
from hydra.errors import ConfigCompositionException, MissingConfigException

from segquant import Method, presets
from segquant.method.parts import Budget
from segquant.numerics.precisions import scheme_of
from segquant.presets.settings import REASONS
from segquant_bench.pipelines.config.explain import explain
from segquant_bench.pipelines.config.precision import arguments_of, scheme_from
from segquant_bench.pipelines.config.quantizer import build_quantizer
from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.main import CONF
from tests.pipelines.conftest import compose_config

SMOOTH = {
    "smoothquant", "smoothquant_plus", "smoothquant_gptq", "awq", "vidit_q", "svdquant", "svdquant_gptq", "segquant_a",
    "segquant_g", "segquant_plus", "segquant_r",
}  # fmt: skip
BRANCH = {"svdquant", "svdquant_gptq", "segquant_a", "segquant_g", "segquant_plus", "segquant_r"}
TURNED = {"quarot", "quarot_mse", "convrot"}
GPTQ = TURNED | {"gptq", "gptq_mse", "gptq_mixed", "smoothquant_gptq", "svdquant_gptq"}
GPTQ |= {"segquant_g", "segquant_plus", "segquant_r"}
ALL = {name for name in presets.__all__ if name not in ("Common", "none", "plan")}
FITS: dict[str, tuple[Any, set[str]]] = {
    "ranges": ("mse", ALL), "headroom": ("search", ALL), "bias_correction": (True, ALL - {"q_diffusion"}),
    "rotate": ("regular", ALL), "rotation_group": (64, ALL), "clip_norm": (2.0, ALL), "percentile": (99.5, ALL),
    "alpha": ("search_layer", SMOOTH), "alpha_rows": ("held_out", SMOOTH), "alpha_none": (True, SMOOTH),
    "rank": (3, BRANCH), "rank_limit": (16, BRANCH), "rank_fraction": (0.1, BRANCH), "svd": ("randomized", BRANCH),
    "iterations": (2, BRANCH), "gram_shrinkage": (0.25, GPTQ | BRANCH | {"auto"}), "act_order": (False, GPTQ),
    "damp": (0.02, GPTQ), "calibrator": ("amax", TURNED), "budget": (Budget(bytes=1.5, over="formats"), ALL),
}  # fmt: skip
"""A value, and the methods that take it."""
PAIRS = [(name, setting) for setting in FITS for name in sorted(ALL)]


def config_of(name: str) -> dict[str, Any]:
    """A method's own file and what it is based on, without Hydra, which takes a tenth of a second."""
    found: dict[str, Any] = {}
    content = yaml.safe_load((CONF / "quantizer" / f"{name}.yaml").read_text(encoding="utf-8"))
    for base in content.pop("defaults", []):
        if base != "_self_":
            found |= yaml.safe_load((CONF / "quantizer" / f"{base.removesuffix('@_here_')}.yaml").read_text())
    return {**found, **content, "precision": "w8a8_tensor", "convolutions": False}


def made(name: str, **settings: Any) -> Method:
    return getattr(presets, name)("w8a8_tensor", **settings)


@pytest.mark.parametrize("name, setting", PAIRS)
def test_it_is_taken_or_one_sentence_says_why_not(name: str, setting: str) -> None:
    value, fitting = FITS[setting]
    config = config_of(name)
    if name in fitting:
        method = made(name, **{setting: value})
        assert (method.rotation.name if setting == "rotate" else method.value(setting)) == value
        assert build_quantizer({**config, setting: value}) == method, "the file says what the function does"
    elif setting == "bias_correction":
        with pytest.raises(ValueError, match="bias_correction has nothing to add to calibrator 'adaround'"):
            made(name, bias_correction=True)
    else:
        assert setting in REASONS and setting not in config
        for call, error in (
            (lambda: made(name, **{setting: value}), TypeError),
            (lambda: build_quantizer({**config, setting: value}), PipelineError),
        ):
            with pytest.raises(error) as caught:
                call()
            told = str(caught.value)
            assert f"{name} takes no {setting!r}: {REASONS[setting]}" in told and "\n" not in told


@pytest.mark.parametrize("name", sorted(ALL))
def test_files_hold_what_the_functions_take_and_default_to(name: str) -> None:
    config, hints = config_of(name), typing.get_type_hints(getattr(presets, name))
    (keywords,) = typing.get_args(hints["settings"])
    assert config.keys() - {"_target_", "precision"} == set(keywords.__annotations__)
    for precision in ("w8a8_tensor", "w4a8"):
        if name != "percentile" or precision == "w8a8_tensor":
            assert build_quantizer({**config, "precision": precision}) == getattr(presets, name)(precision)


@pytest.mark.parametrize("name, setting", [("rtn", "iterations"), ("gptq", "alpha"), ("smoothquant", "rank")])
def test_the_command_line_tells_the_reason_too(name: str, setting: str) -> None:
    with pytest.raises(ConfigCompositionException) as caught:
        compose_config([f"quantizer={name}", f"quantizer.{setting}=1"])
    assert (
        explain(caught.value)
        == f"there is no key 'quantizer.{setting}': {name} takes no {setting!r}: {REASONS[setting]}"
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("w6g32_a8token", "write precision=custom precision.weight.dtype=int6 precision.weight.group_size=32"),
        ("w4g32_a8token", "write precision=w4a8"),
        ("w9g32_a8token", "did you mean"),
        ("w6g0_a16", "did you mean"),
        ("w8a9", "did you mean 'w8a8'"),
    ],
)
def test_a_precision_called_by_its_fields_is_told_how_it_is_written(name: str, said: str) -> None:
    with pytest.raises(MissingConfigException) as caught:
        compose_config([f"precision={name}"])
    assert said in explain(caught.value)


@pytest.mark.parametrize(
    "name",
    ["w6g32_a8token", "wfp4e2m1g16-e8m0_a16", "wu3channel_a6tensor", "w8tensor_a4dynamic", "wnf4g64-float32_au8g64",
     "w4g64-k6_a16", "w8channel-bfloat16_afp8g32-e8m0"],
)  # fmt: skip
def test_what_is_written_in_its_place_is_the_same_format(name: str) -> None:
    arguments = arguments_of(name)
    assert arguments[0] == "precision=custom" and not any("=none" in each for each in arguments)
    config = validate(compose_config(arguments))
    assert config.precision.name == name
    assert scheme_from(config.precision) == scheme_of(name)


def test_an_engine_that_only_reads_files_is_told_where_they_are_made() -> None:
    with pytest.raises(MissingConfigException) as caught:
        compose_config(["run=tensorrt"])
    assert explain(caught.value) == (
        "run=tensorrt is no option of the group run: nothing here runs TensorRT; quantize with "
        "quantizer.deploy=tensorrt, and write its file with `segquant-export DIR format=onnx profile=tensorrt`"
    )
