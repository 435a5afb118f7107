"""Quantized weights whose config.json does not say so, for which diffusers would take random ones."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from functools import wraps
from typing import Any

from diffusers import ModelMixin
from torch import nn

from segquant.deploy.diffusers.quantizer import SegQuantQuantizer
from segquant.errors import QuantizationError

METHOD = "_load_pretrained_model"
"""The one place that has the files' names, of a folder as of the Hub, before they are read."""
CODES, SCALE = ".codes", ".weight_scale"
MARK = "of_segquant"


def refuse_unread_weights() -> None:
    """Let models look at the names in their files before these are read; all else goes on as in diffusers."""
    own: Any = vars(ModelMixin).get(METHOD)
    if not isinstance(own, classmethod) or hasattr(own.__func__, MARK):
        return
    load: Any = own.__func__

    @wraps(load)
    def method(cls: Any, *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(load).bind(cls, *args, **kwargs).arguments
        _refuse(given.get("model"), given.get("loaded_keys"), given.get("hf_quantizer"), given)
        return load(cls, *args, **kwargs)

    setattr(method, MARK, True)
    setattr(ModelMixin, METHOD, classmethod(method))


def _refuse(model: Any, names: Any, quantizer: Any, given: dict[str, Any]) -> None:
    known = isinstance(quantizer, SegQuantQuantizer) and quantizer.pre_quantized
    if known or not isinstance(model, nn.Module) or not isinstance(names, Collection):
        return
    found = set(names)
    layers = (name.removesuffix(CODES) for name in names if name.endswith(CODES))
    ours = [layer for layer in layers if f"{layer}{SCALE}" in found]
    if ours and f"{ours[0]}{CODES}" not in model.state_dict():
        raise QuantizationError(
            f"{given.get('pretrained_model_name_or_path')} has quantized weights of {len(ours)} layers ({ours[0]}, …), "
            "and its config.json has no quantization_config, which says how to read them: it would load with random "
            "weights; copy config.json from where the model was saved, or save it again"
        )
