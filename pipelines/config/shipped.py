from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from segquant_bench.pipelines.config.schema import RunConfig
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.runtime.paths import ZOO, ZOO_ADVICE, ZOO_VARIABLE, zoo_variable

CLIP_METRICS = frozenset(["clip_score", "caption_top1"])


def check_shipped(run: RunConfig) -> None:
    """Refuse a run whose files of pipelines/zoo are missing.

    Raises:
        PipelineError: they are, or SEGQUANT_ZOO names no directory.
    """
    named = zoo_variable()
    if named is not None and not named.is_dir():
        raise PipelineError(f"{ZOO_VARIABLE}={named} is no directory; set it to pipelines/zoo of a clone, or unset it")
    missing = [] if ZOO.is_dir() else [(key, path) for key, path in _paths(run) if path.is_relative_to(ZOO)]
    if missing:
        listed = ", ".join(f"{key} ({path.relative_to(ZOO)})" for key, path in missing)
        raise PipelineError(
            f"the package does not contain the shipped files that this run needs: {listed}; {ZOO_ADVICE}, or set "
            f"{missing[0][0]} to files of your own"
        )


def _paths(run: RunConfig) -> Iterator[tuple[str, Path]]:
    named = {
        "model.path": run.model.path,
        **{f"model.parts.{name}.path": part.path for name, part in run.model.parts.items()},
        "dataset.archive": run.dataset.archive,
        "metric.backends.clip_path": run.metric.backends.clip_path if CLIP_METRICS & {*run.metric.metrics} else None,
    }
    return ((key, Path(path)) for key, path in named.items() if path is not None)
