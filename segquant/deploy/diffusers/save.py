"""`save_pretrained` of a quantized model: diffusers' own, with its quantizer put in for the time."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from segquant.deploy.diffusers.config import SegQuantConfig
from segquant.deploy.diffusers.quantizer import SegQuantQuantizer
from segquant.errors import QuantizationError
from segquant.files import order_metadata
from segquant.layers.adapters import refuse_attached
from segquant.modules.wrappers import unwrapped
from segquant.serialize.config import to_config
from segquant.serialize.digest import is_digested
from segquant.serialize.manifest import MANIFEST
from segquant.serialize.save import describe, refuse_valueless


def save_pretrained(own: Any, model: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Write config.json and safetensors files, as diffusers does, for `from_pretrained`.

    Args:
        own: diffusers' method, for float models.

    Raises:
        QuantizationError: another file format is asked for, the folder is one of save_quantized, adapters are attached,
            or a tensor has no values.
    """
    given = inspect.signature(own).bind(model, *args, **kwargs).arguments
    with unwrapped(model) as inner:
        refuse_unsaveable(inner, given)
        stored, manifest = describe(inner)
        was = {name: vars(inner)[name] for name in ("hf_quantizer",) if name in vars(inner)}
        config: Any = inner.config
        before = config.get("quantization_config")
        quantizer = SegQuantQuantizer(SegQuantConfig(saved=to_config(manifest)), pre_quantized=True)
        quantizer.stored = stored.tensors
        inner.register_to_config(quantization_config=quantizer.quantization_config)  # type: ignore[operator]
        inner.hf_quantizer = quantizer
        try:
            own(inner, *args, **kwargs)
            for path in sorted(Path(given["save_directory"]).glob("*.safetensors")):
                if is_digested(path):
                    order_metadata(path)  # diffusers' key and ours: the same model in the same bytes
        finally:
            del inner.hf_quantizer
            vars(inner).update(was)
            inner.register_to_config(quantization_config=before)  # type: ignore[operator]


def refuse_unsaveable(model: nn.Module, given: Mapping[str, Any]) -> None:
    """Raise, before anything is written, if this model cannot be saved by these arguments of `save_pretrained`."""
    if given.get("safe_serialization", True) is False or given.get("use_flashpack"):
        raise QuantizationError("a quantized model is saved as safetensors alone; leave safe_serialization=True")
    if (Path(given["save_directory"]) / MANIFEST).is_file():
        raise QuantizationError(
            f"{given['save_directory']} holds what save_quantized wrote, and its list of files would lead to the old "
            "weights; give another directory"
        )
    refuse_attached(model, "save_pretrained")
    refuse_valueless(model)
