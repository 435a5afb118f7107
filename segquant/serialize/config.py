"""What diffusers' config.json says of a quantized model: the manifest's part that makes the layers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from segquant.checks import described, listed
from segquant.errors import QuantizationError, first_line
from segquant.serialize.manifest import QUANT_METHOD, READS, SCHEMA, check_parts

PARTS = ("aliases", "outside", "strides")


def to_config(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """`quantization_config` of a manifest; layers of one layout share it."""
    layouts: dict[str, int] = {}
    layers = {}
    for name, entry in manifest["layers"].items():
        text = json.dumps(entry["layout"])
        layers[name] = {**entry, "layout": layouts.setdefault(text, len(layouts))}
    parts = {part: manifest[part] for part in PARTS if manifest[part]}
    shared = [json.loads(text) for text in layouts]
    return {"quant_method": QUANT_METHOD, "schema": manifest["schema"], "layouts": shared, "layers": layers, **parts}


def from_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The manifest's part again.

    Args:
        where: whose config it is, for messages.

    Raises:
        QuantizationError: another schema, or entries are missing.
    """
    schema = config.get("schema")
    if type(schema) is not int or schema not in READS:
        raise QuantizationError(
            f"the quantization_config of {where} has schema {described(schema)}, this version of segquant reads "
            f"{SCHEMA}; save the model again, or install the version that wrote it"
        )
    try:
        layouts = listed("layouts", config["layouts"])
        layers = {
            name: {**entry, "layout": _shared(layouts, entry["layout"])} for name, entry in config["layers"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise QuantizationError(
            f"the quantization_config of {where} cannot be read ({type(error).__name__}: {first_line(error)}); save "
            "the model again"
        ) from error
    empty: dict[str, Any] = {"aliases": {}, "outside": [], "strides": {}}
    found = {**empty, **{part: config[part] for part in PARTS if part in config}, "layers": layers}
    check_parts(f"the quantization_config of {where}", found)
    return found


def _shared(layouts: list[Any], index: Any) -> Any:
    if type(index) is not int or not 0 <= index < len(layouts):
        raise ValueError(f"{described(index)} is the place of none of {len(layouts)} layouts")
    return layouts[index]
