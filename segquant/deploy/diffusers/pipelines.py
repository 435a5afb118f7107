"""`save_pretrained` of a pipeline: it writes its parts in turn, so what cannot be saved is refused before the first."""

from __future__ import annotations

import inspect
from functools import wraps
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline, ModelMixin
from torch import nn

from segquant.deploy.diffusers.save import refuse_unsaveable
from segquant.layers.layer import QuantLayer
from segquant.layers.saving import METHOD, Refusal, put_before
from segquant.modules.wrappers import unwrapped


def teach_pipelines() -> None:
    """Let pipelines look at their quantized parts first; those of other pipelines are saved as ever."""
    own: Any = getattr(DiffusionPipeline, METHOD)

    @wraps(own)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse(self, inspect.signature(own).bind(self, *args, **kwargs).arguments)
        return own(self, *args, **kwargs)

    put_before(DiffusionPipeline, method)


def _refuse(pipeline: Any, given: dict[str, Any]) -> None:
    for name in pipeline.config:
        part = getattr(pipeline, name, None)
        if not isinstance(part, nn.Module) or not any(isinstance(layer, QuantLayer) for layer in part.modules()):
            continue
        with unwrapped(part) as inner:
            own = vars(inner).get(METHOD)
            if isinstance(own, Refusal):  # of another library, as text encoders are
                own()
            if isinstance(inner, ModelMixin):
                refuse_unsaveable(inner, {**given, "save_directory": Path(given["save_directory"]) / name})
