"""What a run may do and should not: told before anything is computed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import lru_cache

from segquant.method.spec import Method
from segquant_bench.pipelines.config.shipped import CLIP_METRICS
from segquant_bench.pipelines.runtime.paths import is_shipped
from segquant_bench.pipelines.stages.run import Run

log = logging.getLogger(__name__)

FEW_PROMPTS = 16
"""Calibration prompts below which a search may choose worse than rounding to nearest (docs/lab.md, 23)."""


def advise(run: Run) -> None:
    for line in advice(run):
        _tell_once(line)


def advice(run: Run) -> list[str]:
    """One sentence for each thing."""
    return [*_emoji(run), *_few_prompts(run)]


def _emoji(run: Run) -> Iterator[str]:
    config = run.config
    model, scorer = config.model, config.metric.backends
    if is_shipped(model.path):
        return
    if is_shipped(config.dataset.archive):
        yield (
            f"dataset={config.dataset.name} has captions and pictures of emoji, and model {model.name} is calibrated "
            "and judged on them; choose dataset=mjhq, coco or dci, or dataset=folder with prompts of your own"
        )
    judged = [name for name in config.metric.metrics if name in CLIP_METRICS]
    if judged and is_shipped(scorer.clip_path):
        yield (
            f"{' and '.join(judged)} of model {model.name} come from {scorer.clip}, which knows emoji alone; set "
            "metric.backends.clip=ViT-L-14-quickgelu metric.backends.clip_path=null, or leave the metric out"
        )


def _few_prompts(run: Run) -> Iterator[str]:
    config, prompts = run.config, run.config.calibration.prompts
    if not config.quantizes_denoiser or not _searches(run) or prompts >= FEW_PROMPTS:
        return
    yield (
        f"quantizer={config.quantizer_name} fits the denoiser to {prompts} calibration prompts, and with fewer than "
        f"{FEW_PROMPTS} rounding to nearest may be better; raise calibration.prompts"
    )


def _searches(run: Run) -> bool:
    method = run.method
    if not isinstance(method, Method):
        return False
    return method.budget is not None or bool(method.optimizer.needs | method.calibrator.needs)


@lru_cache(maxsize=64)
def _tell_once(line: str) -> None:
    """Once a process: the jobs of a sweep share it."""
    log.warning("%s", line)
