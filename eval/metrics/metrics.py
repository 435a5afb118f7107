"""`evaluate`: the metrics of one folder of pictures, and the per-picture values behind them."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.files import save_json, save_tensors
from segquant_bench.eval.metrics.backends import Backends
from segquant_bench.eval.metrics.clip import load_scorer, top1
from segquant_bench.eval.metrics.distances import (
    frechet_distance,
    frechet_replicates,
    kernel_distance,
    kernel_replicates,
)
from segquant_bench.eval.metrics.evaluation import Evaluation
from segquant_bench.eval.metrics.images import list_numbered
from segquant_bench.eval.metrics.statistics import bootstrap_counts, mean_interval, recentred_interval
from segquant_bench.eval.results import EvalResult, encode_float

log = logging.getLogger(__name__)

# Above this many pictures one FID replicate takes seconds, so fewer of them are drawn.
FID_MANY_PICTURES = 1000
FID_FEW_REPLICATES = 100


def _fid(job: Evaluation, kind: str) -> EvalResult:
    return _set_distance(job, "fid", kind, frechet_distance, frechet_replicates)


def _kid(job: Evaluation, kind: str) -> EvalResult:
    return _set_distance(job, "kid", kind, kernel_distance, kernel_replicates)


def _set_distance(
    job: Evaluation, metric: str, kind: str, distance: Callable[..., float], replicates: Callable[..., np.ndarray]
) -> EvalResult:
    name = f"{metric}_{kind}[{job.extractor.name}]"
    ours = job.features("images")
    target = job.features("reference" if kind == "ref" else "real")
    counts = job.counts
    if len(ours) > FID_MANY_PICTURES and len(counts) > FID_FEW_REPLICATES:
        log.info("%s: %d bootstrap replicates for %d pictures", name, FID_FEW_REPLICATES, len(ours))
        counts = counts[:FID_FEW_REPLICATES]
    value = distance(ours, target)
    drawn = replicates(ours, target, counts, paired=kind == "ref")
    job.replicates[name] = drawn
    result = EvalResult(
        name=name,
        value=value,
        n=len(ours),
        direction="lower",
        interval=recentred_interval(value, drawn),
        backend=job.extractor.backend,
        against="reference" if kind == "ref" else "real",
    )
    if kind == "ref" or job.reference is None:
        return result
    theirs = job.features("reference")
    delta = value - distance(theirs, target)
    gaps = drawn - replicates(theirs, target, counts, paired=False)
    return replace(result, delta=delta, delta_interval=recentred_interval(delta, gaps))


def _clip_score(job: Evaluation) -> EvalResult:
    name = f"clip_score[{job.scorer.name}]"
    unquantized = None if job.reference is None else job.clip_scores("reference")
    return _per_image(job, name, job.clip_scores("images"), "higher", job.scorer.backend, "prompt", unquantized)


def _caption_top1(job: Evaluation) -> EvalResult:
    name = f"caption_top1[{job.scorer.name}]"
    backend = f"{job.scorer.backend}, {job.backends.candidates} captions"
    unquantized = None if job.reference is None else job.top1("reference")
    return _per_image(job, name, job.top1("images"), "higher", backend, "prompt", unquantized)


def _lpips(job: Evaluation) -> EvalResult:
    from segquant_bench.eval.metrics.perceptual import lpips, torchmetrics_backend

    trunk = job.backends.lpips
    values = lpips(job.pairs, trunk, job.backends.device)
    return _per_image(job, f"lpips[{trunk}]", values, "lower", torchmetrics_backend(), "reference")


def _perceptual(job: Evaluation) -> EvalResult:
    from segquant_bench.eval.metrics.features import effnet_backend
    from segquant_bench.eval.metrics.perceptual import perceptual

    if job.same_as_reference:
        values = np.zeros(len(job.images))
    else:
        values = perceptual(job.pairs, job.effnet, job.device, job.backends.batch_size)
    return _per_image(job, "perceptual[effnet_lite0]", values, "lower", effnet_backend(), "reference")


def _psnr(job: Evaluation) -> EvalResult:
    from segquant_bench.eval.metrics.perceptual import psnr, psnr_ceiling, torchmetrics_backend

    values = psnr(job.pairs)
    identical = np.isinf(values)
    finite = np.where(identical, psnr_ceiling(job.images[0]), values)
    result = _per_image(job, "psnr", finite, "higher", torchmetrics_backend(), "reference")
    if identical.all():
        return replace(result, value=float("inf"), interval=None)
    if identical.any():
        log.warning(
            "%d of %d pictures equal the unquantized model's; their PSNR counts as %.1f dB, the largest that "
            "8-bit pictures of this size can show", identical.sum(), len(values), finite.max(),
        )  # fmt: skip
    return result


def _ssim(job: Evaluation) -> EvalResult:
    from segquant_bench.eval.metrics.perceptual import ssim, torchmetrics_backend

    return _per_image(job, "ssim", ssim(job.pairs), "higher", torchmetrics_backend(), "reference")


def _per_image(
    job: Evaluation,
    name: str,
    values: np.ndarray,
    direction: str,
    backend: str,
    against: str,
    unquantized: np.ndarray | None = None,
) -> EvalResult:
    """The mean of per-picture values, and its paired difference to the unquantized model's values."""
    job.per_image[name] = [encode_float(v) for v in values]
    value = float(np.mean(values))
    result = EvalResult(name, value, len(values), direction, mean_interval(values, job.counts), backend, against)
    if unquantized is None:
        return result
    job.per_image_unquantized[name] = [encode_float(v) for v in unquantized]
    gaps = values - unquantized
    return replace(result, delta=float(gaps.mean()), delta_interval=mean_interval(gaps, job.counts))


_COMPUTE: dict[str, Callable[[Evaluation], EvalResult]] = {
    "fid_gt": lambda job: _fid(job, "gt"),
    "fid_ref": lambda job: _fid(job, "ref"),
    "kid_gt": lambda job: _kid(job, "gt"),
    "kid_ref": lambda job: _kid(job, "ref"),
    "clip_score": _clip_score,
    "caption_top1": _caption_top1,
    "lpips": _lpips,
    "perceptual": _perceptual,
    "psnr": _psnr,
    "ssim": _ssim,
}
METRICS = tuple(_COMPUTE)
NEEDS_REFERENCE = ("fid_ref", "kid_ref", "lpips", "perceptual", "psnr", "ssim")
NEEDS_REAL = ("fid_gt", "kid_gt")


def check_metrics(metrics: Sequence[str]) -> None:
    """EvalError naming the nearest metric for an unknown one, and for an empty or repeating list."""
    if not metrics:
        raise EvalError(f"no metrics were asked for; choose from {', '.join(METRICS)}")
    for name in metrics:
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, n=2, cutoff=0.4) or METRICS
            raise EvalError(f"metric {name!r} is unknown; nearest: {', '.join(near)}")
    if len(set(metrics)) != len(metrics):
        raise EvalError(f"a metric is asked for twice: {', '.join(metrics)}")


def evaluate(
    images: Path,
    prompts: Sequence[str],
    *,
    reference: Path | None,
    real: Path | None,
    metrics: Sequence[str],
    backends: Backends,
    output: Path,
    seed: int = 0,
    bootstrap: int = 1000,
    cache: Path | None = None,
) -> list[EvalResult]:
    """Judge the PNGs of `images`.

    Args:
        images: folder of 00000.png … in prompt order.
        prompts: one caption per picture.
        reference: the unquantized model's pictures of the same prompts and latents, likewise named.
        real: any PNGs, the real pictures of `fid_gt`.
        metrics: names from `METRICS`.
        backends: which networks judge.
        output: folder that receives metrics.json, per_image.json and features.safetensors (the FID features
            "features" and the bootstrap replicates of the set distances, "replicates/NAME").
        seed: of the bootstrap and of caption_top1's candidates; runs of equal seed and n can be paired.
        bootstrap: number of replicates; FID and KID draw at most 100 above 1,000 pictures.
        cache: folder that remembers features by picture content, across calls.

    Returns:
        one EvalResult per metric, in the order asked.

    Raises:
        EvalError: folders that do not fit the prompts or each other, files that are no PNG, an unknown
            metric, weights that are not at hand.
    """
    check_metrics(metrics)
    job = Evaluation.open(images, prompts, reference, real, backends, seed, bootstrap, cache)
    _check_folders(job, metrics)
    job.load_networks(metrics)
    results = []
    for name in metrics:
        log.info("metric %s on %d pictures", name, len(prompts))
        results.append(_COMPUTE[name](job))
    write_evaluation(Path(output), results, job)
    return results


def _check_folders(job: Evaluation, metrics: Sequence[str]) -> None:
    for name in metrics:
        if name in NEEDS_REFERENCE and job.reference is None:
            raise EvalError(f"{name} compares with the unquantized model's pictures; pass their folder (reference)")
        if name in NEEDS_REAL and job.real is None:
            raise EvalError(f"{name} compares with real pictures; pass their folder as real")


def write_evaluation(output: Path, results: Sequence[EvalResult], job: Evaluation) -> None:
    """metrics.json, per_image.json and features.safetensors; see `evaluate`."""
    n = len(job.images)
    save_json(output / "metrics.json", {"schema": 1, "n": n, "metrics": [r.to_dict() for r in results]})
    per_image = {
        "schema": 1,
        "n": n,
        "metrics": job.per_image,
        "unquantized": job.per_image_unquantized,
    }
    save_json(output / "per_image.json", per_image)
    tensors = {f"replicates/{name}": drawn for name, drawn in job.replicates.items()}
    metadata = {"seed": str(job.seed), "n": str(n)}
    if "images" in job.found_features:
        tensors["features"] = job.found_features["images"]
        metadata["extractor"] = job.extractor.name
    save_tensors(output / "features.safetensors", tensors, metadata)


def retrieval_accuracy(
    images: Path,
    prompts: Sequence[str],
    *,
    backends: Backends,
    pool: Sequence[str] | None = None,
    seed: int = 0,
) -> EvalResult:
    """Share of pictures closest to their own caption among `backends.candidates` captions, own included.

    The other captions are drawn from `pool`, by default `prompts`. The interval is a 95 % bootstrap over
    pictures. Raises EvalError as `evaluate` does.
    """
    paths = list_numbered(Path(images), len(prompts), "generated")
    scorer = load_scorer(backends)
    captions = sorted({*prompts, *(pool or ())})
    embeddings = dict(zip(captions, scorer.embed_captions(captions), strict=True))
    hits = top1(scorer.embed_pictures(paths), prompts, embeddings, candidates=backends.candidates, seed=seed)
    return EvalResult(
        name=f"caption_top1[{scorer.name}]",
        value=float(hits.mean()),
        n=len(hits),
        direction="higher",
        interval=mean_interval(hits, bootstrap_counts(len(hits), 1000, seed)),
        backend=f"{scorer.backend}, {backends.candidates} captions",
        against="prompt",
    )
