"""Values of every type for every key: a sentence before any work, or a run that may begin."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from segquant_bench.pipelines.main import user_message
from segquant_bench.pipelines.stages.benchmark import check_run, open_run
from tests.pipelines.config.any_value import SETTINGS, VALUES, Values, drawn
from tests.pipelines.conftest import Tiny, compose_config


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Relative paths are those of an empty folder."""
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("settings", SETTINGS[:3], ids=" ".join)
def test_some_values(settings: tuple[str, ...], tiny: Tiny, tmp_path: Path) -> None:
    values = Values(tiny, tmp_path / "cache")
    pairs = values.every(settings)
    assert len(pairs) > 140 * len(VALUES)
    values.try_all(settings, drawn(pairs, 30, 0))
    assert not values.faults
    assert values.refused > 5 and values.right > 2
    assert not (tmp_path / "cache" / "stage").exists()


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS, ids=" ".join)
def test_every_value(settings: tuple[str, ...], tiny: Tiny, tmp_path: Path) -> None:
    values = Values(tiny, tmp_path / "cache")
    values.try_all(settings, values.every(settings))
    assert not values.faults
    assert not (tmp_path / "cache" / "stage").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.scheduler=-1", "model.scheduler=-1 is no class of diffusers"),
        ("model.scheduler=x", ", AllegroPipeline, "),
        ("model.scheduler=AutoencoderKL", "model.scheduler=AutoencoderKL is no scheduler"),
        ("model.control=nan", "model.control='nan' is not known"),
        ("model.variant=inf", "has no file of that variant"),
        ("model.pipeline=FluxNothing", "model.pipeline=FluxNothing is no class of diffusers"),
        ("model.call.true_cfg_scale=2", "takes no 'true_cfg_scale'"),
        ("model.call.height=33", "model.call.height=33 is no multiple of 4"),
        ("model.call.guidance_scale=nan", "model.call.guidance_scale=nan is no finite number"),
        ("correction.ridge=inf", "correction.ridge=inf is no finite number"),
        ("seed=-1", "seed=-1 is a negative seed"),
        ("calibration.seed=-1", "calibration.seed=-1 is a negative seed"),
        ("seed=9223372036854775808", "does not fit in 64 bits"),
        ("backend=null", "backend=None is no backend"),
        ("stages='${seed}'", "stages=0 is no section"),
        (
            "metric.backends.inception=/nonexistent",
            "metric.backends.inception=/nonexistent is not there; give inception-",
        ),
        ("quantizer.seglinear=maybe", "seglinear"),
        ("name=../../x", "leads out of the sweep's folder"),
    ],
)
def test_refused_before_any_work(override: str, words: str, tiny: Tiny, tmp_path: Path) -> None:
    from segquant_bench.pipelines.config.schema import validate

    metrics = ["metric.metrics=[psnr]"] if "inception" in override else []  # refused though nothing reads it
    with pytest.raises(Exception) as raised:  # of any kind that becomes a sentence
        check_run(open_run(validate(compose_config([*tiny.overrides(tmp_path / "cache"), *metrics, override]))))
    message = user_message(raised.value)
    assert message is not None and words in message and len(message) < 1500, raised.value
    assert not (tmp_path / "cache" / "stage").exists()
