"""Formats drawn at random, through the configuration and `quantize_`: each runs, or is refused in one sentence."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from segquant import (
    InputStats,
    Method,
    Segments,
    find_segments,
    load_quantized,
    observe,
    quantize_with_outcome_,
    save_quantized,
)
from segquant.numerics.grids import GRIDS
from segquant.numerics.precisions import precision_name, scheme_of
from segquant.numerics.scales import SCALE_DTYPES
from segquant_bench.pipelines.config.quantizer import build_method
from segquant_bench.pipelines.config.run_hash import config_hash
from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.main import user_message
from tests.pipelines.conftest import Command, Tiny, compose_config

COUNT = 300
PRESETS = (
    "rtn", "mse", "percentile", "smoothquant", "gptq", "awq", "svdquant", "quarot", "ptq4dit", "segquant_a",
    "segquant_g", "segquant_r",
)  # fmt: skip
"""Those that a draw of a fraction of a second can hold; auto and AdaRound have tests of their own."""
FIXED = ("awq", "svdquant", "segquant_g", "segquant_r")
"""Without a search of α, to which formats are nothing new; segquant_a has one."""
ODD: dict[str, tuple[Any, ...]] = {
    "dtype": ("fp8_e4m3", "int", "int9", "fp5", None),
    "bits": (1, 4, 9),
    "granularity": ("tensor", "channel", "token", "group"),
    "group_size": (None, 48, 0, 512, 64),
    "scale_dtype": (*SCALE_DTYPES, "bf16"),
    "dynamic": (True, False),
    "symmetric": (True, False),
}
"""What may stand in the place of a field that goes with the others."""
SCALES = ("float32", "bfloat16", "float16", "e8m0", "e4m3")
WIDTH = 256


class Two(nn.Module):
    """A layer of the input, and one of what comes out of an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.first(x) + self.second(nn.functional.gelu(x))
        return found


def build() -> nn.Module:
    torch.manual_seed(0)
    return Two().eval()


@cache
def batches() -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(16, WIDTH, generator=draw) for _ in range(6)]


@cache
def known() -> tuple[dict[str, InputStats], dict[str, Segments]]:
    """Statistics and segments, which all draws share."""
    return observe(build(), batches(), gram=True, salience=True), find_segments(build(), (batches()[0],))


@cache
def composed(preset: str) -> DictConfig:
    given = ["quantizer.alpha=0.5"] if preset in FIXED else []
    return compose_config([f"quantizer={preset}", "precision=custom", *given])


def fields(draw: random.Random, side: str) -> dict[str, Any]:
    """Fields that mostly go together."""
    dtype, size = draw.choice((*GRIDS,)), draw.choice((None, None, 8, 16, 32, 64, 128))
    whole = draw.choice((None, "tensor", "channel" if side == "weight" else "token"))
    found = {"dtype": dtype, "group_size": size, "granularity": draw.choice((None, "group")) if size else whole}
    if "int" in dtype:
        found["bits"] = draw.choice((None, None, None, 2, 3, 4, 5, 6, 7, 8))
        found["symmetric"] = draw.choice((None, None, None, dtype.startswith("int")))
        if dtype.startswith("int") and draw.random() < 0.2:
            found["symmetric"] = False
    found["scale_dtype"] = draw.choice((None, *SCALES))
    if side == "weight" and "int" in dtype and size in (16, 32) and draw.random() < 0.5:
        found["scale_dtype"] = draw.choice(("k4", "k6", "k8", "q0" if dtype.startswith("int") else "q1"))
    if side == "input" and found["granularity"] == "tensor":
        found["dynamic"] = draw.choice((None, True, False))
    return found | {key: draw.choice(values) for key, values in ODD.items() if draw.random() < 0.03}


def drawn(draw: random.Random, preset: str) -> DictConfig:
    """A configuration with fields set one by one, as Hydra sets those of a command line."""
    config = composed(preset).copy()
    for side in ("weight", "input"):
        if side == "input" and draw.random() < 0.2:
            OmegaConf.update(config, "precision.input", None)
            continue
        for key, value in fields(draw, side).items():
            OmegaConf.update(config, f"precision.{side}.{key}", value)
    return config


def quantized(config: DictConfig) -> tuple[nn.Module, Any]:
    str(config.name)  # looked up for the run's folder, before anything else
    method = build_method(validate(config))
    assert isinstance(method, Method)
    stats, segments = known()
    model = build()
    return model, quantize_with_outcome_(model, method, [], segments, stats=stats)


def test_formats_drawn_at_random_run_or_are_refused_in_a_sentence(tmp_path: Path) -> None:
    draw = random.Random(13)
    ran: list[str] = []
    refused: set[str] = set()
    wrong: list[str] = []
    for number in range(COUNT):
        preset = draw.choice(PRESETS)
        config = drawn(draw, preset)
        told = f"{number}: {preset}, {OmegaConf.to_container(config.precision)}"
        try:
            model, outcome = quantized(config)
        except Exception as error:  # of any kind, as long as a sentence comes of it
            message = user_message(error)
            if message is None or not _is_sentence(message):
                wrong.append(f"{told}: {type(error).__name__}: {error}")
            refused.add(str(message))
            continue
        output = model(batches()[0])
        if not torch.isfinite(output).all():
            wrong.append(f"{told}: not finite")
        ran.append(str(config.precision.name))
        if len(ran) % 5 == 0:
            save_quantized(model, tmp_path / str(number), outcome)
            loaded = load_quantized(tmp_path / str(number), build())
            assert torch.equal(loaded(batches()[0]), output), told
    assert not wrong, "\n".join(wrong)
    assert len(ran) > COUNT / 3 and len(set(ran)) > COUNT / 4 and len(refused) > 20


def _is_sentence(message: str) -> bool:
    """On one line, with what to do instead."""
    advises = any(words in message for words in ("; ", "nearest: ", "known: ", "must be"))
    return "\n" not in message and len(message.split()) >= 6 and advises


def test_the_same_fields_have_one_name_and_one_hash_however_they_are_written() -> None:
    ways = [
        ["precision=w4a8", "precision.weight.bits=6", "precision.weight.group_size=64"],
        ["precision=custom", "precision.weight={dtype: int6, group_size: 64}"],
        ["precision=w8a8_dynamic", "precision.weight.dtype=int6", "precision.weight.granularity=group",
         "precision.weight.group_size=64", "precision.weight.symmetric=true", "precision.input.granularity=token"],
    ]  # fmt: skip
    runs = [validate(compose_config(way)) for way in ways]
    assert {run.precision.name for run in runs} == {"w6g64_a8token"}
    assert {run.name for run in runs} == {"segquant_g_w6g64_a8token"}
    assert len({config_hash(run, "model", {}) for run in runs}) == 1
    assert {precision_name(build_method(run).scheme) for run in runs} == {"w6g64_a8token"}
    same = validate(compose_config(["precision=custom", "precision.weight.bits=8"]))
    plain = validate(compose_config(["precision=w8a8_dynamic"]))
    assert same.precision.name == "w8a8_dynamic" and config_hash(same, "m", {}) == config_hash(plain, "m", {})


@pytest.mark.parametrize(
    "given",
    [
        ["precision=custom", "precision.weight.dtype=int6", "precision.weight.group_size=16"],
        ["precision=mxfp4", "precision.weight.group_size=16", "precision.input=null"],
        ["precision=w8a8", "precision.weight.bits=3", "precision.weight.symmetric=false", "precision.input.bits=6"],
    ],
)
def test_formats_of_the_real_command(command: Command, tiny: Tiny, cache: Path, given: list[str]) -> None:
    outcome = command(*tiny.overrides(cache), "quantizer=rtn", "run=reference", *given)
    assert outcome.code == 0, outcome.err
    results = json.loads((outcome.folder / "results.json").read_text())
    name = results["precision"]
    assert name in ("w6g16_a8token", "wfp4e2m1g16-e8m0_a16", "wu3channel_a6tensor")
    scheme, told = scheme_of(name), results["config"]["precision"]
    assert told["name"] == name and results["name"] == f"rtn_{name}_reference"
    for side in ("weight", "input"):
        spec = getattr(scheme, side)
        assert (spec and spec.dtype) == (told[side] and told[side]["dtype"]) or told[side]["symmetric"] is False
