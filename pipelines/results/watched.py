"""One run, watched while it works."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segquant.serialize.manifest import MANIFEST
from segquant_bench.pipelines.config.run_hash import config_hash
from segquant_bench.pipelines.errors import one_line
from segquant_bench.pipelines.loggers.content import show_results
from segquant_bench.pipelines.loggers.guarded import Guarded, logged
from segquant_bench.pipelines.loggers.logger import About, Logger
from segquant_bench.pipelines.results.write import read_json, write_results
from segquant_bench.pipelines.runtime import provenance
from segquant_bench.pipelines.runtime.cache import stage_key
from segquant_bench.pipelines.runtime.events import hearing
from segquant_bench.pipelines.runtime.watch import Watch, followed
from segquant_bench.pipelines.stages.benchmark import compute_run, wanted_stages
from segquant_bench.pipelines.stages.estimate import estimate
from segquant_bench.pipelines.stages.run import Run
from segquant_bench.pipelines.stages.shared.contents import file_contents

log = logging.getLogger(__name__)


def run_watched(
    run: Run, logger: Logger, folder: Path, group: str, resolved: Mapping[str, Any], prefix: str = ""
) -> Path | float:
    """Compute a run that `check_run` has passed, write its results, and show it all.

    Args:
        group: where the configuration names none.
        resolved: the whole configuration, for loggers.
        prefix: before lines about progress.

    Returns:
        The path of results.json; of a run that was pruned, the layer error.
    """
    with logged(logger, about_run(run, folder, group, resolved)) as shown:
        results = _computed(run, folder, shown, prefix)
        if isinstance(results, float):
            pruned = {"pruned_at_layer_error": results}
            shown.ask(lambda logger: logger.summary(pruned))
            return results
        log.info("results: %s", one_line(str(results)))
        record = read_json(results)
        for place in quantized_folders(record, folder):
            log.info("quantized model, for load_quantized and segquant-export: %s", one_line(os.path.normpath(place)))
        shown.ask(lambda logger: show_results(logger, record, folder))
    return results


def quantized_folders(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Where a run's quantized models are, the denoiser's and those of further components; other tools have none."""
    places = {"quantize": "denoiser", "components": "*"}
    roots = {stage: folder / results["stages"][stage]["path"] for stage in places if stage in results["stages"]}
    return [path.parent for stage, root in roots.items() for path in sorted(root.glob(f"{places[stage]}/{MANIFEST}"))]


def _computed(run: Run, folder: Path, shown: Guarded, prefix: str) -> Path | float:
    expected = estimate(run)
    if sentence := expected.sentence():
        log.info("%s%s", prefix, sentence)

    def values(found: Mapping[str, float]) -> None:
        shown.ask(lambda logger: logger.values(found))

    with hearing(shown), followed(Watch(expected.seconds, prefix, values)):
        pruned = compute_run(run)
        return write_results(run, folder) if pruned is None else pruned


def about_run(run: Run, folder: Path, group: str, resolved: Mapping[str, Any]) -> About:
    config = run.config
    key = config_hash(config, run.fingerprint, run.dataset.record, file_contents(run))
    return About(
        id=key,
        content=stage_key("logged", {name: run.key(name) for name in wanted_stages(run)}),
        name=f"{config.model.name} {config.name}",
        group=group,
        kind=config.quantizer_name,
        tags=(config.model.name, config.quantizer_name, config.precision_name, config.dataset.name),
        config={**resolved, "config_hash": key, "git": provenance.git_commit()},
        folder=folder,
        cache=run.cache,
    )
