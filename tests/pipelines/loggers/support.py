"""A run to log, and a logger that keeps what it is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from segquant_bench.pipelines.loggers.logger import About


def about(folder: Path, **changed: Any) -> About:
    values: dict[str, Any] = {
        "id": "abc", "content": "digest", "name": "m rtn", "group": "group", "kind": "rtn", "tags": ("m", "rtn"),
        "config": {"seed": 0}, "folder": folder, "cache": folder / "cache",
    }  # fmt: skip
    return About(**{**values, **changed})


def finished(folder: Path, **values: Any) -> dict[str, Any]:
    """The results of a run with one odd prompt, and its folder."""
    for name, colour in (("images", "red"), ("reference", "blue")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), colour).save(folder / name / "00000.png")
    (folder / "evaluation").mkdir(exist_ok=True)
    (folder / "evaluation" / "per_image.json").write_text('{"metrics": {"psnr": [40.5]}, "unquantized": {"clip": [3]}}')
    return {
        "config_hash": "abc", "metrics": [{"name": "psnr", "value": 40.5, "interval": [40, 41]}],
        "layer_errors": {"a": 0.25}, "output_error": 0.5, "per_row_output_errors": [0.1, 0.3, 0.5, 0.2],
        "per_row_steps": [0, 0, 0, 2], "per_row_prompts": [0, 0, 1, 0], "components": {}, "stages": {},
        "correction": None, "weight_bytes": 1, "weight_bytes_float": 4, "layer_error": {"mean": 0.25, "median": None},
        "device": {"type": "cpu", "cpus": 2}, "precision": "w8a8", "model": "m", "name": "n", "quantizer": "rtn",
        "prompts": ["a\ncat"],
        "artifacts": {"images": "images", "reference": "reference", "evaluation": "evaluation"},
        **values,
    }  # fmt: skip
