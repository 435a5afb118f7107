"""Save and load quantized models: a safetensors and a JSON file."""

from __future__ import annotations

from segquant.serialize.load import load_quantized
from segquant.serialize.manifest import read_outcome
from segquant.serialize.save import save_quantized

__all__ = ["load_quantized", "read_outcome", "save_quantized"]
