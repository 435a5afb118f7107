from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from segquant_bench.eval import METRICS, Backends, EvalError, EvalResult, evaluate
from segquant_bench.eval.metrics.distances import frechet_distance
from tests.eval.support import noisy, smooth_pictures, write_pictures

OFFLINE = [name for name in METRICS if name != "lpips"]


@pytest.fixture(scope="module")
def judged(tmp_path_factory, images, reference, real, prompts, backends):
    output = tmp_path_factory.mktemp("evaluation")
    results = evaluate(
        images, prompts, reference=reference, real=real, metrics=OFFLINE, backends=backends, output=output,
        bootstrap=200, cache=output / "cache",
    )  # fmt: skip
    return {r.name: r for r in results}, output


def test_every_metric_has_n_direction_interval_and_backend(judged) -> None:
    results, _ = judged
    assert list(results) == [
        "fid_gt[effnet_lite0]", "fid_ref[effnet_lite0]", "kid_gt[effnet_lite0]", "kid_ref[effnet_lite0]",
        "clip_score[tiny_clip]", "caption_top1[tiny_clip]", "perceptual[effnet_lite0]", "psnr", "ssim",
    ]  # fmt: skip
    for result in results.values():
        assert result.n == 12
        assert result.backend
        low, high = result.interval
        assert low <= result.value <= high
    assert {n for n, r in results.items() if r.delta is not None} == {
        "fid_gt[effnet_lite0]", "kid_gt[effnet_lite0]", "clip_score[tiny_clip]", "caption_top1[tiny_clip]",
    }  # fmt: skip
    assert {r.direction for r in results.values()} == {"lower", "higher"}


def test_files_on_disk(judged) -> None:
    results, output = judged
    stored = json.loads((output / "metrics.json").read_text())
    assert [EvalResult.from_dict(entry) for entry in stored["metrics"]] == list(results.values())
    per_image = json.loads((output / "per_image.json").read_text())
    for name, values in per_image["metrics"].items():
        assert np.mean(values) == pytest.approx(results[name].value)
    clip = "clip_score[tiny_clip]"
    gap = np.mean(per_image["metrics"][clip]) - np.mean(per_image["unquantized"][clip])
    assert results[clip].delta == pytest.approx(gap)
    tensors = load_file(output / "features.safetensors")
    assert tensors["features"].shape == (12, 1280)
    assert tensors["left_out/fid_ref[effnet_lite0]"].shape == (12,)
    assert not [p for p in output.iterdir() if p.name.startswith(".")]


def test_fid_delta_is_against_unquantized(judged, reference, real, prompts, backends, tmp_path) -> None:
    results, output = judged
    (alone,) = evaluate(
        reference, prompts, reference=None, real=real, metrics=["fid_gt"], backends=backends, output=tmp_path,
        bootstrap=10, cache=output / "cache",
    )  # fmt: skip
    fid = results["fid_gt[effnet_lite0]"]
    assert alone.delta is None
    assert fid.value - fid.delta == pytest.approx(alone.value)


def test_fid_ref_is_clean_fids(judged, images, reference, prompts, backends, tmp_path) -> None:
    """The value from features on disk, by clean-fid's own Fréchet distance."""
    from cleanfid.fid import fid_from_feats

    results, output = judged
    evaluate(
        reference, prompts, reference=reference, real=None, metrics=["fid_ref"], backends=backends,
        output=tmp_path, bootstrap=2, cache=output / "cache",
    )  # fmt: skip
    ours = load_file(output / "features.safetensors")["features"].astype(np.float64)
    theirs = load_file(tmp_path / "features.safetensors")["features"].astype(np.float64)
    value = results["fid_ref[effnet_lite0]"].value
    assert value == pytest.approx(frechet_distance(ours, theirs))
    # As few dimensions as 12 pictures determine: the matrix root does not bear a singular product.
    squeeze = np.random.default_rng(0).normal(size=(1280, 8))
    want = fid_from_feats(ours @ squeeze, theirs @ squeeze)
    assert frechet_distance(ours @ squeeze, theirs @ squeeze) == pytest.approx(want, rel=1e-6)


def test_unquantized_model_against_itself(reference, prompts, backends, tmp_path) -> None:
    results = evaluate(
        reference, prompts, reference=reference, real=None, 
        metrics=["fid_ref", "clip_score", "perceptual", "psnr", "ssim"], backends=backends, output=tmp_path,
        bootstrap=20,
    )  # fmt: skip
    fid, clip, perceptual, psnr, ssim = results
    assert fid.value == pytest.approx(0.0, abs=1e-6)
    assert clip.delta == 0.0 and clip.delta_interval == (0.0, 0.0)
    assert perceptual.value == 0.0
    assert psnr.value == float("inf") and psnr.interval is None
    assert ssim.value == pytest.approx(1.0, abs=1e-6)
    assert "Infinity" not in (tmp_path / "metrics.json").read_text()
    assert EvalResult.from_dict(json.loads((tmp_path / "metrics.json").read_text())["metrics"][3]) == psnr


def test_some_identical_pictures(reference, reference_pictures, prompts, backends, tmp_path, caplog) -> None:
    mixed = noisy(reference_pictures, 8.0, seed=1)
    mixed[:3] = reference_pictures[:3]
    (psnr,) = evaluate(
        write_pictures(tmp_path / "mixed", mixed), prompts, reference=reference, real=None, metrics=["psnr"],
        backends=backends, output=tmp_path / "out", bootstrap=20,
    )  # fmt: skip
    assert np.isfinite(psnr.value)
    assert "3 of 12 pictures equal the unquantized model's" in caplog.text


def test_same_seed_same_numbers(judged, images, reference, real, prompts, backends, tmp_path) -> None:
    results, output = judged
    metrics = ["fid_ref", "caption_top1", "psnr"]
    again = evaluate(
        images, prompts, reference=reference, real=real, metrics=metrics, backends=backends, output=tmp_path,
        bootstrap=200, cache=output / "cache",
    )  # fmt: skip
    assert again == [results[r.name] for r in again]


def test_better_pictures_score_better(judged, reference, reference_pictures, prompts, backends, tmp_path) -> None:
    results, _ = judged
    worse = write_pictures(tmp_path / "worse", noisy(reference_pictures, 30.0, seed=1))
    metrics = ["fid_ref", "kid_ref", "perceptual", "psnr", "ssim"]
    for result in evaluate(
        worse, prompts, reference=reference, real=None, metrics=metrics, backends=backends,
        output=tmp_path / "out", bootstrap=20,
    ):  # fmt: skip
        ours = results[result.name].value
        assert (ours < result.value) == (result.direction == "lower"), result.name


def bad(images: Path, prompts: list[str], backends: Backends, output: Path, **changes) -> None:
    options = {"reference": None, "real": None, "metrics": ["psnr"], "backends": backends, "output": output}
    evaluate(images, prompts, **(options | changes))


def test_bad_input_leaves_nothing(images, reference, prompts, backends, tmp_path) -> None:
    output = tmp_path / "out"
    with pytest.raises(EvalError, match="unquantized model's pictures; pass their folder"):
        bad(images, prompts, backends, output)
    with pytest.raises(EvalError, match="fid_gt compares with real pictures"):
        bad(images, prompts, backends, output, metrics=["fid_gt"])
    with pytest.raises(EvalError, match="'pnsr' is unknown; did you mean 'psnr'"):
        bad(images, prompts, backends, output, metrics=["pnsr"])
    with pytest.raises(EvalError, match="no metrics were asked for"):
        bad(images, prompts, backends, output, metrics=[])
    with pytest.raises(EvalError, match="asked for twice"):
        bad(images, prompts, backends, output, metrics=["psnr", "psnr"])
    with pytest.raises(EvalError, match="12 PNGs for 11 prompts"):
        bad(images, prompts[:-1], backends, output, reference=reference)
    with pytest.raises(EvalError, match="there are no prompts"):
        bad(images, [], backends, output, reference=reference)
    with pytest.raises(EvalError, match="does not exist"):
        bad(tmp_path / "nowhere", prompts, backends, output, reference=reference)
    with pytest.raises(EvalError, match="only 12 different"):
        bad(images, prompts, replace(backends, candidates=50), output, metrics=["caption_top1"])
    large = write_pictures(tmp_path / "large", smooth_pictures(12, 40, seed=0))
    with pytest.raises(EvalError, match="32×32 but .* 40×40"):
        bad(images, prompts, backends, output, reference=large)
    assert not output.exists()


def test_lpips_is_refused_at_once(images, reference, prompts, backends, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(EvalError, match="lpips with the alex trunk was asked for"):
        bad(images, prompts, backends, tmp_path / "out", reference=reference, metrics=["psnr", "lpips"])
    assert not (tmp_path / "out").exists()


def test_too_few_pictures_for_fid(reference, real, prompts, backends, tmp_path) -> None:
    one = write_pictures(tmp_path / "one", smooth_pictures(1, 32, seed=0))
    with pytest.raises(EvalError, match="at least 2 pictures"):
        bad(one, prompts[:1], backends, tmp_path / "out", real=real, metrics=["fid_gt"])
