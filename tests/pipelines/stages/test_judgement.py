"""Which metrics a run asks for: names of eval's, or paths of the user's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from segquant_bench.eval import METRICS, EvalError
from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.config.sections import MetricConfig
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.stages.benchmark import open_run, run_all
from segquant_bench.pipelines.stages.evaluate import check_judges
from segquant_bench.pipelines.stages.shared.judgement import asked_metrics, check_metrics, needs_real
from segquant_bench.pipelines.stages.shared.own import metric_code
from tests.pipelines.conftest import Tiny, compose_config

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


def test_prompts_without_pictures_meet_one_error(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt\n" + "\n".join(f"thing {i}" for i in range(20)))
    rest = [each for each in tiny.overrides(tmp_path) if not each.startswith("dataset")]
    base = [*rest, "dataset=folder", f"dataset.table={tmp_path}/p.csv", "metric.metrics=[fid_gt,psnr]"]

    def refusal(*more: str) -> str:
        with pytest.raises(PipelineError) as raised:
            run_all(open_run(validate(compose_config([*base, *more]))))
        return str(raised.value)

    first = refusal()
    assert all(words in first for words in ("dataset.pictures=false", "dataset.size=NUMBER", "without fid_gt"))
    both = refusal("dataset.pictures=false", "dataset.size=18")
    assert "6 calibration prompts" in both and both.endswith("or set metric.metrics=[psnr]")
    assert "fid_gt" not in refusal("dataset.pictures=false", "dataset.size=18", "metric.metrics=[psnr]")


def test_wrong_values_are_found_before_the_first_stage_computes(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(validate(compose_config([*tiny.overrides(tmp_path), "backend=no_backend", "quantizer=rtn"])))
    monkeypatch.setattr(type(run), "stage", lambda *_: pytest.fail("a stage was computed"))
    with pytest.raises(PipelineError, match="no_backend"):
        run_all(run)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [(["metric.metrics=[psnr,caption_top1]", "metric.backends.candidates=100"],
      r"caption_top1 among 100 captions was asked for, but there are only 4"),
     (["metric.metrics=[fid_ref]", "dataset.size=1"], r"at least 2 pictures, 1 was asked for"),
     (["metric.metrics=[fid_ref]", "metric.backends.fid=inception", "metric.backends.inception=/"],
      r"FID with Inception was asked for"),
     (["metric.metrics=[lpips]"], r"lpips with the alex trunk was asked for"),
     (["metric.metrics=[clip_score]", "metric.backends.clip=ViT-L-14", "metric.backends.clip_path=null"],
      r"computes GELU, and weights 'openai' was trained with QuickGELU; set clip=ViT-L-14-quickgelu")],
)  # fmt: skip
def test_what_cannot_be_judged_is_refused_before_the_first_stage(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], sentence: str
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("segquant_bench.eval.metrics.networks.features.find_inception", lambda given: None)
    run = open_run(validate(compose_config([*tiny.overrides(tmp_path), "quantizer=rtn", *overrides])))
    monkeypatch.setattr(type(run), "_compute", lambda *_: pytest.fail("a stage was computed"))
    with pytest.raises(EvalError, match=sentence):
        run_all(run)


def test_finished_judgements_are_not_checked_again(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are gone by now are not missed."""
    run = open_run(validate(compose_config([*tiny.overrides(tmp_path), "metric.metrics=[lpips]"])))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("segquant_bench.pipelines.stages.evaluate.find_finished", lambda *_: object())
    check_judges(run)
