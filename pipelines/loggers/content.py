"""What every logger is shown of a finished run, from its results.json and its folder."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segquant_bench.hidden import visible
from segquant_bench.pipelines.loggers.logger import Artifact, Logger, Picture

if TYPE_CHECKING:
    from PIL import Image

DESCRIBED = ("quantizer", "precision", "config_hash", "weight_bytes")
STEP = "sampling_step"
LOOSE = 4
"""Pixels between a picture and its reference."""


def show_results(logger: Logger, results: Mapping[str, Any], folder: Path) -> None:
    """Curves, tables, pictures, files and the summary, in this order: what comes first is there if the rest fails."""
    logger.summary(summary_values(results))
    for name, points in step_curves(results).items():
        logger.curve(name, STEP, points)
    logger.table("layer_errors", ["layer", "relative error"], layer_rows(results))
    logger.table("per_picture", *per_picture(results, folder))
    logger.pictures("images", pictures(results, folder, logger.config.images))
    logger.artifact(_artifact(results, folder))


def summary_values(results: Mapping[str, Any]) -> dict[str, float | str]:
    """Scalars of results.json by name."""
    values: dict[str, float | str] = {}
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
    values["compression"] = results["weight_bytes_float"] / results["weight_bytes"]
    values.update({f"layer_error/{key}": value for key, value in results["layer_error"].items() if value is not None})
    values.update({f"device/{key}": _scalar(value) for key, value in results["device"].items()})
    return values


def _scalar(value: Any) -> float | str:
    return value if isinstance(value, int | float) else str(value)


def step_curves(results: Mapping[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Errors over sampling steps, counted from 1: of the output on held-out inputs, and of a correction's fit."""
    curves = {}
    by_step = _errors_by_step(results)
    if len(by_step) > 1:
        curves["output_error_at_step"] = [(step + 1.0, statistics.fmean(by_step[step])) for step in sorted(by_step)]
    for key, values in (results["correction"] or {}).items():
        if key.startswith("prediction_error") and len(values) > 1:
            curves[f"correction/{key}"] = [(step + 1.0, float(value)) for step, value in enumerate(values)]
    return curves


def _errors_by_step(results: Mapping[str, Any]) -> dict[int, list[float]]:
    """Every prompt's mean over its calls of a step, as in the report."""
    calls: dict[int, dict[int, list[float]]] = {}
    rows = zip(results["per_row_steps"], results["per_row_prompts"], results["per_row_output_errors"], strict=True)
    for step, prompt, error in rows:
        calls.setdefault(step, {}).setdefault(prompt, []).append(error)
    return {step: [statistics.fmean(each) for each in prompts.values()] for step, prompts in calls.items()}


def layer_rows(results: Mapping[str, Any]) -> list[list[Any]]:
    parts = [part.get("layer_errors", {}) for part in results["components"].values()]
    return [list(item) for found in (results["layer_errors"], *parts) for item in found.items()]


def per_picture(results: Mapping[str, Any], folder: Path) -> tuple[list[str], list[list[Any]]]:
    """Columns and a row for every prompt: what metrics say of its picture, and of the unquantized model's."""
    path = folder / results["artifacts"]["evaluation"] / "per_image.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    columns = {**found["metrics"], **{f"{name}, unquantized": each for name, each in found["unquantized"].items()}}
    prompts = results["prompts"]
    rows = [[index, prompt, *(each[index] for each in columns.values())] for index, prompt in enumerate(prompts)]
    return ["index", "prompt", *columns], rows


def pictures(results: Mapping[str, Any], folder: Path, count: int) -> list[Picture]:
    """The first `count`, each to the right of the unquantized model's where that is another picture."""
    ours, theirs = (folder / results["artifacts"][key] for key in ("images", "reference"))
    return [
        Picture(beside([place / f"{index:05d}.png" for place in dict.fromkeys((theirs, ours))]), prompt)
        for index, prompt in enumerate(results["prompts"][:count])
    ]


def beside(paths: Sequence[Path]) -> Image.Image:
    """Pictures of one height, from left to right, on white."""
    from PIL import Image  # put off: `segquant --help` does without

    found = [Image.open(path, formats=["PNG"]).convert("RGB") for path in paths]
    width = sum(each.width for each in found) + LOOSE * (len(found) - 1)
    whole, left = Image.new("RGB", (width, max(each.height for each in found)), "white"), 0
    for each in found:
        whole.paste(each, (left, 0))
        left += each.width + LOOSE
    return whole


def _artifact(results: Mapping[str, Any], folder: Path) -> Artifact:
    about = {key: results[key] for key in DESCRIBED}
    return Artifact(f"{results['model']}-{results['name']}", _quantized(results, folder), about)


def _quantized(results: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for stage, pattern in (("quantize", "denoiser/*"), ("correct", "correction.*"), ("components", "*/*")):
        if stage in results["stages"]:
            root = folder / results["stages"][stage]["path"]
            for path in visible(root.glob(pattern), root):
                found[path.name if stage != "components" else path.relative_to(root).as_posix()] = path
    return found
