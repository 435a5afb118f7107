"""Weights & Biases; only this module imports wandb."""

from __future__ import annotations

import importlib.util
import logging
import netrc
import os
import re
from pathlib import Path
from typing import Any

from segquant_bench.pipelines.config.sections import LoggerConfig
from segquant_bench.pipelines.errors import PipelineError

log = logging.getLogger(__name__)

HOST = "api.wandb.ai"
DESCRIBED = ("quantizer", "precision", "config_hash", "weight_bytes")


def check_installed() -> None:
    """PipelineError if wandb is asked for and not there."""
    if importlib.util.find_spec("wandb") is None:
        raise PipelineError("logger=wandb needs the package wandb; run `pip install wandb` or set logger=none")


def resolve_mode(mode: str) -> Any:
    """ "auto" is $WANDB_MODE, else "online" with a key in environment or netrc, else "offline"."""
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    return "online" if os.environ.get("WANDB_API_KEY") or _has_login() else "offline"


def _has_login() -> bool:
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(path).authenticators(HOST) is not None
    except (OSError, netrc.NetrcParseError):
        return False


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


def log_run(config: LoggerConfig, results: dict[str, Any], folder: Path, resolved: Any, group: str) -> None:
    """Log a finished run; `group` if the configuration names none, wandb's files into `folder`."""
    import wandb  # put off: most runs log nothing

    run = wandb.init(
        project=config.project,
        entity=config.entity,
        group=config.group or group,
        name=f"{results['model']} {results['name']}",
        job_type=results["quantizer"],
        config={**resolved, "config_hash": results["config_hash"], "git": results["git"]},
        dir=folder,
        mode=resolve_mode(config.mode),
        settings=wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=True),
    )
    try:
        errors = wandb.Table(columns=["layer", "relative error"], data=_layer_rows(results))
        pictures = _pictures(wandb, results, folder, config.images)
        run.log({**summary_values(results), "images": pictures, "layer_errors": errors})
        files = _quantized(results, folder)
        if config.artifact and files:
            run.log_artifact(_artifact(wandb, results, files))
    finally:
        run.finish()
    log.info("wandb: %s", run.settings.mode)


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
    """W&B takes letters, digits and "_.-" only."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", text)


def _pictures(wandb: Any, results: dict[str, Any], folder: Path, count: int) -> list[Any]:
    images = folder / results["artifacts"]["images"]
    return [
        wandb.Image(str(images / f"{index:05d}.png"), caption=prompt)
        for index, prompt in enumerate(results["prompts"][:count])
    ]


def _quantized(results: dict[str, Any], folder: Path) -> dict[Path, str]:
    found: dict[Path, str] = {}
    for stage, pattern in (("quantize", "denoiser/*"), ("correct", "correction.*"), ("components", "*/*")):
        if stage in results["stages"]:
            root = folder / results["stages"][stage]["path"]
            for path in sorted(root.glob(pattern)):
                found[path] = path.name if stage != "components" else path.relative_to(root).as_posix()
    return found
