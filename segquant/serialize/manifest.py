"""quantized.json: what describes a saved model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from segquant.checks import checked, described, fits
from segquant.errors import QuantizationError, first_line
from segquant.quantize.outcome import Outcome
from segquant.serialize.method_fields import DAMAGE, unreadable, wrong_fields, wrong_layout

WEIGHTS = "quantized.safetensors"
MANIFEST = "quantized.json"
CONFIG = "config.json"
"""As diffusers names it."""
QUANT_METHOD = "segquant"
SCHEMA = 2
READS = (1, 2)
"""Schemas that load_quantized reads; 1 named smoothing, rotation and ranks in every layout, and had a flat method."""
_DIGITS = 20
"""Of whole numbers: of 64 bits, and a sign."""
_Pairs = Mapping[str, Any]
_FIELDS: dict[str, Any] = {
    "bytes": int, "class": Mapping[str, str], "config": _Pairs | None, "aliases": Mapping[str, str],
    "layers": Mapping[str, _Pairs],
}  # fmt: skip
_LATER: dict[str, Any] = {
    "outside": list[str], "strides": Mapping[str, list[int]], "sha256": str, "versions": Mapping[str, str],
    "method": _Pairs, "segments": Mapping[str, _Pairs], "passes": int, "extra": _Pairs, "folded": list[str],
    "plan": list[_Pairs],
}  # fmt: skip
"""Fields that the first versions, or models of certain kinds, do not have."""
_PARTS = ("layers", "aliases", "outside", "strides")
"""Fields that make a model's layers, which diffusers' config.json has too."""
_LAYER: dict[str, Any] = {"layout": _Pairs, "bias_dtype": str | None}
_LAYER_LATER: dict[str, Any] = {"dtype": str | None, "window": _Pairs}


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
    except DAMAGE as error:
        raise QuantizationError(
            f"{folder / MANIFEST} has no readable method ({type(error).__name__}: {first_line(error)}); save the model "
            "again"
        ) from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """The whole file.

    Raises:
        QuantizationError: missing, no JSON, of another schema, or a field is missing or of another type.
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
        manifest = json.loads(path.read_text(encoding="utf-8"), **NUMBERS)
    except (ValueError, RecursionError) as error:  # also: no UTF-8, numbers of thousands of digits
        raise QuantizationError(f"{path} is no valid JSON ({first_line(error)}); save the model again") from error
    if not isinstance(manifest, dict):
        raise QuantizationError(f"{path} is damaged: it holds {described(manifest)}; save the model again")
    schema = manifest.get("schema")
    if type(schema) is not int or schema not in READS:
        raise QuantizationError(
            f"{path} has schema {described(schema)}, this version reads {SCHEMA}; save the model again"
        )
    _check(path, "", manifest, _FIELDS, _LATER)
    _check(path, "class ", manifest["class"], {"module": str, "name": str}, {})
    _check_layers(path, manifest["layers"])
    for place, value in wrong_fields(manifest):
        raise QuantizationError(f"{path} is damaged: it has {described(value)} as its {place!r}; save the model again")
    for place, why in unreadable(manifest):
        raise QuantizationError(
            f"{path} is damaged: its {place!r} cannot be read ({type(why).__name__}: {first_line(why)}); save the "
            "model again"
        ) from why
    return manifest


def check_parts(where: str, parts: _Pairs) -> None:
    """As `read_manifest`, of what makes the layers: "layers", "aliases", "outside" and "strides".

    Raises:
        QuantizationError: a field is missing or of another type.
    """
    _check(where, "", parts, {key: {**_FIELDS, **_LATER}[key] for key in _PARTS}, {})
    if not parts["layers"]:
        raise QuantizationError(f"{where} is damaged: it names no layer; save the model again")
    _check_layers(where, parts["layers"])


def _check_layers(where: str | Path, layers: Mapping[str, _Pairs]) -> None:
    for name, entry in layers.items():
        _check(where, f"layer {name!r} ", entry, _LAYER, _LAYER_LATER)
        if "" in (entry.get("dtype"), entry["bias_dtype"]):
            raise QuantizationError(f"{where} is damaged: layer {name!r} has an empty dtype; save the model again")
        for place, value in wrong_layout(entry["layout"], f"layers.{name}.layout."):
            raise QuantizationError(
                f"{where} is damaged: it has {described(value)} as its {place!r}; save the model again"
            )


def _whole(text: str) -> int:
    return int(text) if len(text) <= _DIGITS else _no_number(f"{text[:_DIGITS]}… of {len(text)} digits")


def _finite(text: str) -> float:
    return float(text) if math.isfinite(float(text)) else _no_number(text)


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


NUMBERS: dict[str, Any] = {"parse_constant": _no_number, "parse_float": _finite, "parse_int": _whole}
"""Keywords of `json.loads` that refuse NaN, infinities, and whole numbers that no field has."""


def _check(path: str | Path, of: str, values: _Pairs, fields: _Pairs, later: _Pairs) -> None:
    """QuantizationError for a field that is missing (but of `later`) or of another type."""
    for key, hint in {**fields, **later}.items():
        if key not in values and key in fields:
            raise QuantizationError(f"{path} is damaged: {of or 'it '}has no {key!r}; save the model again")
        if key in values and not fits(values[key], hint):
            raise QuantizationError(
                f"{path} is damaged: {of or 'it '}has {described(values[key])} as its {key!r}; save the model again"
            )
