"""Metrics answer for themselves, and one of somebody's own package needs no change here."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segquant_bench.eval import METRICS, EvalError, EvalResult, Evaluation, Metric, Network, evaluate, register_metric
from segquant_bench.eval.metrics import metric as metric_module
from segquant_bench.eval.metrics.registry import find_metric, find_metrics, known_metric, place
from segquant_bench.eval.report.runs import known
from segquant_bench.eval.tables import numbers

PACKAGE = """
import numpy as np
from PIL import Image
from segquant_bench.eval import EvalResult, Evaluation, Metric, register_metric

def brightness(evaluation: Evaluation) -> EvalResult:
    values = np.array([np.asarray(Image.open(path), dtype=np.float64).mean() for path in evaluation.images])
    return BRIGHTNESS.per_picture(evaluation, values, backend="numpy")

BRIGHTNESS = register_metric(Metric("brightness", "higher", brightness, unit="of 255"))
NUMBER = 3
"""


@pytest.fixture
def registry() -> Iterator[dict[str, Metric]]:
    """The registry, as it was again afterwards."""
    before = dict(METRICS)
    yield METRICS
    METRICS.clear()
    METRICS.update(before)


@pytest.fixture
def package(tmp_path: Path, registry: dict[str, Metric], monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "packages" / "their_metrics"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "light.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(folder.parent))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "their_metrics"]:
        del sys.modules[name]


def zero(evaluation: Evaluation) -> EvalResult:
    return find_metric("zero").per_picture(evaluation, np.zeros(len(evaluation.images)), backend="none")


def test_directions_units_and_what_is_asked_for() -> None:
    told = {
        m.name: (m.direction, m.unit, m.against, [network.name for network in m.networks]) for m in METRICS.values()
    }
    assert told == {
        "fid_gt": ("lower", "", "real", ["fid"]),
        "fid_ref": ("lower", "", "reference", ["fid"]),
        "kid_gt": ("lower", "", "real", ["fid"]),
        "kid_ref": ("lower", "", "reference", ["fid"]),
        "clip_score": ("higher", "", "prompt", ["clip"]),
        "caption_top1": ("higher", "", "prompt", ["clip"]),
        "lpips": ("lower", "", "reference", ["lpips"]),
        "perceptual": ("lower", "", "reference", ["effnet_lite0"]),
        "psnr": ("higher", "dB", "reference", []),
        "ssim": ("higher", "", "reference", []),
    }
    assert [m.name for m in METRICS.values() if m.headline] == ["fid_ref", "psnr"]


def test_examples_in_docstrings() -> None:
    for module in (metric_module, known, numbers):
        outcome = doctest.testmod(module)
        assert outcome.attempted > 0 and outcome.failed == 0, module.__name__


def test_a_metric_of_ones_own_package(
    package: Path, images: Path, prompts: list[str], backends, tmp_path: Path
) -> None:
    (result,) = evaluate(
        images, prompts, reference=None, real=None, metrics=["their_metrics.light.BRIGHTNESS"], backends=backends,
        output=tmp_path / "out", bootstrap=50,
    )  # fmt: skip
    want = [np.asarray(Image.open(path), dtype=np.float64).mean() for path in sorted(images.glob("*.png"))]
    assert result.value == pytest.approx(np.mean(want))
    assert (result.name, result.unit, result.against, result.n) == ("brightness", "of 255", None, 12)
    stored = json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"]
    assert [EvalResult.from_dict(entry) for entry in stored] == [result]
    kept = json.loads((tmp_path / "out" / "per_image.json").read_text())["metrics"]
    assert kept == {"brightness": pytest.approx(want)}
    assert known_metric("brightness") is find_metric("brightness")


def test_what_is_no_metric_is_one_sentence(package: Path) -> None:
    for path, sentence in (
        ("their_metrics.light.NUMBER", "is a int, not a Metric"),
        ("their_metrics.light.DARKNESS", r"cannot be imported \(.*DARKNESS"),
        ("their_metrics.heavy.BRIGHTNESS", r"cannot be imported \(No module named 'their_metrics.heavy'"),
        ("their_metrics/light", "is unknown; known are"),
    ):
        with pytest.raises(EvalError, match=sentence):
            find_metric(path)
    with pytest.raises(EvalError, match="asked for twice"):
        find_metrics(["their_metrics.light.BRIGHTNESS", "brightness"])


def test_names_belong_to_one_metric(registry: dict[str, Metric]) -> None:
    assert register_metric(METRICS["psnr"]) is METRICS["psnr"]
    with pytest.raises(EvalError, match="there is a metric 'psnr' already"):
        register_metric(replace(METRICS["psnr"], compute=zero))
    with pytest.raises(EvalError, match="takes a Metric, got 'psnr'"):
        register_metric("psnr")
    for name in ("my.metric", "fid[x]", "Big", "", "a,b"):
        with pytest.raises(EvalError, match="a metric's name is lower case"):
            Metric(name, "lower", zero)
    for wrong in ({"direction": "up"}, {"against": "nothing"}, {"paired": "seeds"}):
        with pytest.raises(EvalError, match=f"{next(iter(wrong))} of metric zero is .*, must be one of"):
            Metric("zero", **({"direction": "lower"} | wrong), compute=zero)


def test_a_result_of_another_kind_is_refused(
    registry: dict[str, Metric], images: Path, prompts: list[str], backends, tmp_path: Path
) -> None:
    def upside_down(evaluation: Evaluation) -> EvalResult:
        return replace(zero(evaluation), direction="lower")

    register_metric(Metric("zero", "higher", upside_down))
    options = {"reference": None, "real": None, "backends": backends, "output": tmp_path / "out"}
    with pytest.raises(EvalError, match="metric zero computed a result of .* instead of"):
        evaluate(images, prompts, metrics=["zero"], **options)

    def short(evaluation: Evaluation) -> EvalResult:
        return METRICS["short"].per_picture(evaluation, np.zeros(3), backend="none")

    register_metric(Metric("short", "higher", short))
    with pytest.raises(EvalError, match=r"short has values of shape \(3,\) for 12 pictures"):
        evaluate(images, prompts, metrics=["short"], **options)
    assert not (tmp_path / "out").exists()


def test_networks_are_loaded_once_and_before_anything_is_computed(
    registry: dict[str, Metric], images: Path, prompts: list[str], backends, tmp_path: Path
) -> None:
    events: list[str] = []

    def load(given: object) -> str:
        assert given == backends
        events.append("load")
        return "network"

    def compute(evaluation: Evaluation) -> EvalResult:
        events.append(f"compute with {evaluation.network(network)}")
        return zero(evaluation)

    def missing(_: object) -> None:
        raise EvalError("the weights are not there")

    network = Network("own", load)
    register_metric(Metric("zero", "lower", compute, networks=(network,)))
    register_metric(Metric("other", "lower", compute, networks=(network, Network("gone", missing))))
    options = {"reference": None, "real": None, "backends": backends, "output": tmp_path / "out", "bootstrap": 5}
    evaluate(images, prompts, metrics=["zero"], **options)
    assert events == ["load", "compute with network"]
    events.clear()
    with pytest.raises(EvalError, match="the weights are not there"):
        evaluate(images, prompts, metrics=["zero", "other"], **options)
    assert events == ["load"]


def test_order_is_the_metrics_own(registry: dict[str, Metric]) -> None:
    register_metric(Metric("zero", "lower", zero, order=-1))
    names = ["unheard_of", "clip_score[x]", "psnr", "fid_gt[x]", "fid_ref[x]", "zero"]
    assert sorted(names, key=place) == ["zero", "fid_ref[x]", "fid_gt[x]", "psnr", "clip_score[x]", "unheard_of"]


def test_the_table_of_names_needs_no_torch() -> None:
    code = "import sys; from segquant_bench.eval import METRICS; sys.exit(len(METRICS) != 10 or 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
