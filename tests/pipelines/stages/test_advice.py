"""What a run is warned of: emoji for other models, too few prompts for a search."""

from __future__ import annotations

from pathlib import Path

import pytest

from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.runtime.paths import CONF
from segquant_bench.pipelines.stages.benchmark import open_run
from segquant_bench.pipelines.stages.shared.advice import FEW_PROMPTS, advice
from tests.pipelines.conftest import Tiny, compose_config

PUBLISHED = sorted(path.stem for path in (CONF / "model").glob("*.yaml") if "repo:" in path.read_text())


def told(*overrides: str) -> list[str]:
    return advice(open_run(validate(compose_config([*overrides, "logger=none"]))))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_is_warned_of_emoji(name: str) -> None:
    data, scorer = told(f"model={name}", "quantizer=rtn")
    assert f"dataset=emoji has captions and pictures of emoji, and model {name} is calibrated and judged" in data
    assert f"clip_score and caption_top1 of model {name} come from emoji_clip" in scorer
    judges = ["metric.backends.clip=ViT-L-14-quickgelu", "metric.backends.clip_path=null"]
    assert told(f"model={name}", "quantizer=rtn", "dataset=coco", *judges) == []
    assert told(f"model={name}", "quantizer=rtn", "dataset=coco", "metric=paper_segquant") == []


def test_only_metrics_that_the_scorer_judges() -> None:
    assert told("model=sdxl", "quantizer=rtn", "dataset=coco", "metric.metrics=[psnr,fid_ref]") == []
    (line,) = told("model=sdxl", "quantizer=rtn", "dataset=coco", "metric.metrics=[psnr,clip_score]")
    assert line.startswith("clip_score of model sdxl come")


def test_shipped_models_are_at_home_in_emoji(tiny: Tiny, tmp_path: Path) -> None:
    assert told("model=emoji_sd3") == told("model=emoji_flux", "quantizer=gptq") == []
    assert told(*tiny.overrides(tmp_path), "quantizer=rtn") == []


@pytest.mark.parametrize(
    ("quantizer", "warned"),
    [("segquant_g", True), ("smoothquant", True), ("gptq", True), ("auto", True), ("rtn", False), ("none", False)],
)
def test_few_prompts_are_told_where_something_is_fitted(quantizer: str, warned: bool) -> None:
    few = told(f"quantizer={quantizer}", f"calibration.prompts={FEW_PROMPTS - 1}")
    assert bool(few) == warned
    if warned:
        assert f"{FEW_PROMPTS - 1} calibration prompts, and with fewer than {FEW_PROMPTS} rounding to nearest" in few[0]
    assert told(f"quantizer={quantizer}", f"calibration.prompts={FEW_PROMPTS}") == []
