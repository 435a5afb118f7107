"""Which metrics a run asks for: names of eval's, or paths of the user's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from segquant_bench.eval import METRICS
from segquant_bench.pipelines.config.sections import MetricConfig
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.stages.shared.judgement import asked_metrics, check_metrics, needs_real
from segquant_bench.pipelines.stages.shared.own import metric_code

SOURCE = """
from segquant_bench.eval import Metric, register_metric

def compute(evaluation):
    raise NotImplementedError

GLOW = register_metric(Metric("glow", "higher", compute, against="real"))
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    before = dict(METRICS)
    path = tmp_path / "their_judgement.py"
    path.write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield path
    METRICS.clear()
    METRICS.update(before)
    sys.modules.pop("their_judgement", None)


def config(*metrics: str) -> MetricConfig:
    return MetricConfig(name="x", metrics=list(metrics))


def test_a_metric_of_the_users_own_is_named_by_its_path(source: Path) -> None:
    mixed = config("psnr", "their_judgement.GLOW", "fid_gt")
    assert [metric.name for metric in asked_metrics(mixed)] == ["psnr", "glow", "fid_gt"]
    assert needs_real(mixed) == ["glow", "fid_gt"]
    check_metrics(mixed)


def test_its_code_is_part_of_the_key(source: Path) -> None:
    assert metric_code(config("psnr", "fid_ref", "clip_score", "lpips", "caption_top1")) == {}
    before = metric_code(config("psnr", "their_judgement.GLOW"))
    assert before.keys() == {"own_code"}
    source.write_text(SOURCE + "# a comment\n")
    assert metric_code(config("psnr", "their_judgement.GLOW")) == before
    source.write_text(SOURCE + "MORE = 1\n")
    assert metric_code(config("psnr", "their_judgement.GLOW")) != before


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("pnsr", "metric.metrics: 'pnsr' is no metric; .*psnr"),
     ("their_judgement.DARK", "metric.metrics=their_judgement.DARK: their_judgement has no 'DARK'"),
     ("nowhere_at_all.GLOW", "metric.metrics=nowhere_at_all.GLOW: there is no package 'nowhere_at_all' here"),
     ("their_judgement.compute", "metric.metrics: their_judgement.compute is a function, not a Metric")],
)  # fmt: skip
def test_what_is_no_metric_is_one_sentence(source: Path, name: str, sentence: str) -> None:
    with pytest.raises(PipelineError, match=sentence):
        check_metrics(config("psnr", name))
