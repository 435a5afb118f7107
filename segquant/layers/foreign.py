"""Saving by other libraries, which would read quantized layers back as float ones with random weights."""

from __future__ import annotations

import inspect
from typing import NoReturn

from segquant.errors import QuantizationError

METHOD = "save_pretrained"
PACKAGES = ("diffusers", "transformers", "huggingface_hub")
"""Whose `save_pretrained` takes a state dict of all that a model holds."""
OURS = "segquant.serialize.save"


def refuse_foreign_save() -> None:
    """Raise if a state dict is asked for by `save_pretrained` of a model around this one, unless for save_quantized."""
    frame = inspect.currentframe()
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        if module == OURS:
            return
        if frame.f_code.co_name == METHOD and module.partition(".")[0] in PACKAGES:
            owner = frame.f_locals.get("self")
            refuse_save_pretrained("model" if owner is None else type(owner).__name__)
        frame = frame.f_back


def refuse_save_pretrained(kind: str, taught: bool = False) -> NoReturn:
    """`taught`: whether `segquant.deploy.diffusers` would teach this kind of model."""
    first = "import segquant.deploy.diffusers before, which teaches it, or " if taught else ""
    raise QuantizationError(
        f"save_pretrained does not know the quantized layers of this {kind}: its files would load with random weights; "
        f"{first}save it by segquant.save_quantized(model, directory), and a pipeline's other parts by themselves"
    )
