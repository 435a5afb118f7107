"""Saving by other libraries, which would read quantized layers back as float ones with random weights."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from segquant.errors import QuantizationError

METHOD = "save_pretrained"
PACKAGES = ("diffusers", "transformers", "huggingface_hub")
"""Whose `save_pretrained` takes a state dict of all that a model holds."""
ADAPTERS = "peft.tuners."
OURS = ("segquant.serialize.save", "segquant.deploy.diffusers.save")
"""Who knows what a quantized layer's state dict means."""


def refuse_foreign_save() -> None:
    """Raise if a state dict is asked for by `save_pretrained` of a model around this one, unless we asked."""
    frame = inspect.currentframe()
    while frame is not None:
        module = _module_of(frame)
        if module in OURS:
            return
        if frame.f_code.co_name == METHOD and module.partition(".")[0] in PACKAGES:
            if frame.f_back is not None and _module_of(frame.f_back) in OURS:
                return
            owner = frame.f_locals.get("self")
            refuse_save_pretrained("model" if owner is None else type(owner).__name__)
        frame = frame.f_back


def refuse_adapter(*_: Any, **__: Any) -> NoReturn:
    """Raise: layers whose inputs or outputs are not the float model's take no adapter made for it."""
    raise QuantizationError(
        "an adapter (LoRA) does not fit this quantized model: smoothing was folded into its norms, so that layers get "
        "other inputs than those that the adapter was made for; quantize with smoothing='layer', or fuse the adapter "
        "into the float model before quantize_"
    )


def refuse_foreign_adapter() -> None:
    """`refuse_adapter` if peft asks, which looks at a layer's weight when it puts an adapter beside it."""
    frame = inspect.currentframe()
    while frame is not None:
        if _module_of(frame).startswith(ADAPTERS):
            refuse_adapter()
        frame = frame.f_back


def _module_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__"))


def refuse_save_pretrained(kind: str, taught: bool = False) -> NoReturn:
    """`taught`: whether `segquant.deploy.diffusers` would teach this kind of model."""
    first = "import segquant.deploy.diffusers before, which teaches it, or " if taught else ""
    raise QuantizationError(
        f"save_pretrained does not know the quantized layers of this {kind}: its files would load with random weights; "
        f"{first}save it by segquant.save_quantized(model, directory), and a pipeline's other parts by themselves"
        + _half_written()
    )


def _half_written() -> str:
    """What to do about a folder into which a pipeline wrote other parts before it asked for this one."""
    frame = inspect.currentframe()
    while frame is not None:
        folder, owner = frame.f_locals.get("save_directory"), frame.f_locals.get("self")
        ours = frame.f_code.co_name == METHOD and _module_of(frame).partition(".")[0] == PACKAGES[0]
        if ours and not hasattr(owner, "state_dict") and folder is not None and Path(folder).is_dir():
            return f"; {folder} holds some parts of the pipeline alone, delete what was written there"
        frame = frame.f_back
    return ""
