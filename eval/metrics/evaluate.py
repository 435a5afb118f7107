from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.files import save_json, save_tensors
from segquant_bench.eval.metrics.backends import Backends, Has
from segquant_bench.eval.metrics.evaluation import Evaluation
from segquant_bench.eval.metrics.metric import Metric, split_name
from segquant_bench.eval.metrics.registry import check_metrics, find_metrics
from segquant_bench.eval.results import EvalResult

log = logging.getLogger(__name__)


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
    """Judge the PNGs of `images`; one EvalResult per metric, in the order asked.

    Args:
        images: 00000.png … in prompt order.
        reference: the unquantized model's pictures, likewise named.
        real: any PNGs, for `fid_gt`.
        metrics: names from `METRICS`, or Python paths (see `Metric`).
        output: for metrics.json, per_image.json and features.safetensors.
        seed: runs of equal seed and n can be paired.
        bootstrap: replicates, for the intervals of means.
        cache: folder that remembers features.

    Raises:
        EvalError: folders that do not fit, no PNG, an unknown metric, missing weights.
    """
    asked = find_metrics(metrics)
    evaluation = Evaluation.open(images, prompts, reference, real, backends, seed, bootstrap, cache)
    _check_folders(evaluation, asked)
    check_metrics(asked, prompts, backends)
    for network in dict.fromkeys(network for metric in asked for network in metric.networks):
        evaluation.network(network)  # missing weights are told before anything is computed
    results = []
    for metric in asked:
        log.info("metric %s on %d pictures", metric.name, len(prompts))
        results.append(_checked(metric, metric.compute(evaluation)))
    _write(Path(output), results, evaluation)
    return results


def keep_features(
    images: Path,
    prompts: Sequence[str],
    *,
    reference: Path | None,
    real: Path | None,
    metrics: Sequence[str],
    backends: Backends,
    cache: Path,
    has: Has,
) -> None:
    """One process's part of the features that `evaluate` of the same arguments asks for, kept in `cache`.

    Args:
        has: whether the batch that begins with picture `start`, of so many, is this process's.

    Raises:
        EvalError: as `evaluate`.
    """
    asked = find_metrics(metrics)
    evaluation = Evaluation.open(images, prompts, reference, real, backends, 0, 1, cache)
    _check_folders(evaluation, asked)
    for network in dict.fromkeys(network for metric in asked for network in metric.networks):
        if network.part is None:
            continue
        judged = any(metric.needs_real for metric in asked if network in metric.networks)
        given = {"reference": reference is not None, "real": judged}
        for kind in ("images", *(kind for kind, there in given.items() if there)):
            network.part(evaluation.network(network), evaluation.paths(kind), backends, cache, has)


def _check_folders(evaluation: Evaluation, metrics: Sequence[Metric]) -> None:
    for metric in metrics:
        if metric.needs_reference and evaluation.reference is None:
            raise EvalError(
                f"{metric.name} compares with the unquantized model's pictures; pass their folder (reference)"
            )
        if metric.needs_real and evaluation.real is None:
            raise EvalError(f"{metric.name} compares with real pictures; pass their folder as real")


def _checked(metric: Metric, result: EvalResult) -> EvalResult:
    found = (split_name(result.name)[0], result.direction, result.against, result.unit)
    wanted = (metric.name, metric.direction, metric.against, metric.unit)
    if found != wanted:
        raise EvalError(f"metric {metric.name} computed a result of {found} instead of {wanted}; use Metric.result")
    return result


def _write(output: Path, results: Sequence[EvalResult], evaluation: Evaluation) -> None:
    n = len(evaluation.images)
    save_json(output / "metrics.json", {"schema": 1, "n": n, "metrics": [r.to_dict() for r in results]})
    per_image = {
        "schema": 1,
        "n": n,
        "metrics": evaluation.per_image,
        "unquantized": evaluation.per_image_unquantized,
    }
    save_json(output / "per_image.json", per_image)
    tensors = {f"replicates/{name}": drawn for name, drawn in evaluation.replicates.items()}
    tensors |= {f"left_out/{name}": values for name, values in evaluation.left_out.items()}
    metadata = {"seed": str(evaluation.seed), "n": str(n), **evaluation.metadata}
    save_tensors(output / "features.safetensors", {**tensors, **evaluation.tensors}, metadata)
