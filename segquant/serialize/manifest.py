"""quantized.json: what describes a saved model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from segquant.checks import checked
from segquant.errors import QuantizationError
from segquant.quantize.outcome import Outcome

WEIGHTS = "quantized.safetensors"
MANIFEST = "quantized.json"
CONFIG = "config.json"
"""As diffusers names it."""
QUANT_METHOD = "segquant"
SCHEMA = 2
READS = (1, 2)
"""Schemas that load_quantized reads; 1 named smoothing, rotation and ranks in every layout, and had a flat method."""


@checked()
def read_outcome(directory: str | Path) -> Outcome | None:
    """The outcome saved with a model, or None.

    Raises:
        QuantizationError: no quantized model, or a part is not registered.
    """
    folder = Path(directory)
    manifest = read_manifest(folder)
    if "method" not in manifest:
        return None
    try:
        return Outcome.from_dict(manifest)
    except QuantizationError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise QuantizationError(
            f"{folder / MANIFEST} has no readable method ({error}); save the model again"
        ) from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """The whole file.

    Raises:
        QuantizationError: missing, no JSON, or of another schema.
    """
    path = folder / MANIFEST
    if not path.is_file():
        other = folder / CONFIG
        if other.is_file() and f'"{QUANT_METHOD}"' in other.read_text(encoding="utf-8"):
            raise QuantizationError(
                f"{folder} was written by save_pretrained; read it by diffusers' from_pretrained, after import "
                "segquant.deploy.diffusers"
            )
        raise QuantizationError(
            f"{folder} is no quantized model: {MANIFEST} is missing; give a folder written by save_quantized"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise QuantizationError(f"{path} is no valid JSON ({error}); save the model again") from error
    if manifest.get("schema") not in READS:
        raise QuantizationError(
            f"{path} has schema {manifest.get('schema')}, this version reads {SCHEMA}; save the model again"
        )
    return dict(manifest)
