"""Weights & Biases: an optional sink."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segquant.files import write_json
from segquant_bench.hidden import visible
from segquant_bench.pipelines.config.sections import LoggerConfig
from segquant_bench.pipelines.errors import one_line
from segquant_bench.pipelines.results.wandb_mode import LONGEST
from segquant_bench.pipelines.runtime.interrupt import heard
from segquant_bench.texts import plain

log = logging.getLogger(__name__)

DESCRIBED = ("quantizer", "precision", "config_hash", "weight_bytes")
CONTENT = ("config_hash", "metrics", "layer_errors", "output_error", "per_row_output_errors", "components")
"""Of results.json, what makes it another result."""
_refused: list[str] = []
"""Why W&B took no run of this process: the others are not tried again."""


@dataclass(frozen=True)
class Sink:
    """Where a process logs to.

    Attributes:
        mode: as `check_logger` says.
        group: where the configuration names none.
        cache: holds what was logged before.
    """

    config: LoggerConfig
    mode: Any
    group: str
    cache: Path


def shortened(text: str, most: int = LONGEST) -> str:
    """At most `most` characters on one line; longer texts end in a hash, and stay apart."""
    line = plain(text)
    if len(line) <= most:
        return line
    return f"{line[: most - 9]}-{hashlib.sha256(line.encode()).hexdigest()[:8]}"


def summary_values(results: dict[str, Any]) -> dict[str, float]:
    """Scalars of results.json by W&B name."""
    values: dict[str, float] = {}
    for metric in results["metrics"]:
        values[f"metric/{metric['name']}"] = float(metric["value"])
        if metric["interval"] is not None:
            values[f"metric/{metric['name']}/low"], values[f"metric/{metric['name']}/high"] = map(
                float, metric["interval"]
            )
    for name, stage in results["stages"].items():
        values[f"stage/{name}/seconds"] = stage["seconds"]
        values[f"stage/{name}/peak_memory_mb"] = stage["peak_memory_mb"]
        values[f"stage/{name}/cached"] = float(stage["cached"])
    for key in ("output_error", "weight_bytes", "weight_bytes_float"):
        values[key] = results[key]
    values.update({f"layer_error/{key}": value for key, value in results["layer_error"].items() if value is not None})
    return values


def log_run(sink: Sink, results: dict[str, Any], folder: Path, resolved: Any) -> None:
    """Log a finished run, unless the same was logged before; wandb's files go into `folder`.

    Errors become one line of the log. Where W&B does not take it online, it is logged offline.
    """
    mark, digest = _mark(sink, results), _digest(sink, results)
    before = _logged(mark)
    if before.get("digest") == digest:
        log.info("wandb: logged before, %s", before["place"])
        return
    mode = "offline" if sink.mode == "online" and _refused else sink.mode
    try:
        place = _log(sink, mode, results, folder, resolved)
    except Exception as error:  # whatever wandb and its service raise
        log.debug("logging to wandb", exc_info=error)
        if mode == "online":
            _refused.append(one_line(error))
            log.warning("W&B takes no run online (%s): logged offline, `wandb sync` can send it later", one_line(error))
            _end_service()
            log_run(sink, results, folder, resolved)
        else:
            log.warning("the run is not logged to W&B (%s); its results are in %s", one_line(error), plain(str(folder)))
        return
    if place:
        write_json(mark, {"digest": digest, "place": place})
    log.info("wandb: %s", mode)


def _mark(sink: Sink, results: Mapping[str, Any]) -> Path:
    project = hashlib.sha256(f"{sink.config.entity}/{sink.config.project}".encode()).hexdigest()[:8]
    return sink.cache / "wandb" / f"{results['config_hash']}-{project}.json"


def _digest(sink: Sink, results: Mapping[str, Any]) -> str:
    content = {key: results[key] for key in CONTENT}
    content["stages"] = {name: stage["key"] for name, stage in results["stages"].items()}
    content["shown"] = [sink.config.group, sink.config.images, sink.config.artifact]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _logged(mark: Path) -> dict[str, str]:
    """Empty where the mark or the run's offline folder is gone."""
    try:
        found = json.loads(mark.read_text(encoding="utf-8"))
        known = "://" in found["place"] or Path(found["place"]).is_dir()
        return found if known else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _end_service() -> None:
    import wandb

    wandb.teardown()  # else it holds on to the id of the run that it could not begin


def _log(sink: Sink, mode: Any, results: dict[str, Any], folder: Path, resolved: Any) -> str:
    """Returns the run's address, its folder where it is offline, or nothing."""
    import wandb  # put off: most runs log nothing

    config = sink.config
    run = wandb.init(
        project=config.project,
        entity=config.entity,
        group=shortened(config.group or sink.group),
        id=results["config_hash"],
        resume="allow",
        name=shortened(f"{results['model']} {results['name']}"),
        job_type=shortened(results["quantizer"]),
        config={**resolved, "config_hash": results["config_hash"], "git": results["git"]},
        dir=folder,
        mode=mode,
        settings=wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=True),
    )
    try:
        errors = wandb.Table(columns=["layer", "relative error"], data=_layer_rows(results))
        pictures = _pictures(wandb, results, folder, config.images)
        run.log({**summary_values(results), "images": pictures, "layer_errors": errors})
        files = _quantized(results, folder)
        if config.artifact and files:
            run.log_artifact(_artifact(wandb, results, files))
    except KeyboardInterrupt:
        heard()  # W&B is told in a moment
        run.mark_preempting()
        run.finish(exit_code=1)
        raise
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()
    if mode == "online":
        return str(run.url)
    return str(Path(run.settings.sync_dir).absolute()) if mode == "offline" else ""


def _layer_rows(results: dict[str, Any]) -> list[list[Any]]:
    parts = [part.get("layer_errors", {}) for part in results["components"].values()]
    return [list(item) for found in (results["layer_errors"], *parts) for item in found.items()]


def _artifact(wandb: Any, results: dict[str, Any], files: dict[Path, str]) -> Any:
    name = _artifact_name(f"{results['model']}-{results['name']}")
    artifact = wandb.Artifact(name, type="model", metadata={key: results[key] for key in DESCRIBED})
    for path, inside in files.items():
        artifact.add_file(str(path), name=inside, policy="immutable")
    return artifact


def _artifact_name(text: str) -> str:
    """W&B takes 128 letters, digits and "_.-"."""
    return shortened(re.sub(r"[^A-Za-z0-9_.-]", "-", plain(text)))


def _pictures(wandb: Any, results: dict[str, Any], folder: Path, count: int) -> list[Any]:
    images = folder / results["artifacts"]["images"]
    return [
        wandb.Image(str(images / f"{index:05d}.png"), caption=plain(prompt))
        for index, prompt in enumerate(results["prompts"][:count])
    ]


def _quantized(results: dict[str, Any], folder: Path) -> dict[Path, str]:
    found: dict[Path, str] = {}
    for stage, pattern in (("quantize", "denoiser/*"), ("correct", "correction.*"), ("components", "*/*")):
        if stage in results["stages"]:
            root = folder / results["stages"][stage]["path"]
            for path in visible(root.glob(pattern), root):
                found[path] = path.name if stage != "components" else path.relative_to(root).as_posix()
    return found
