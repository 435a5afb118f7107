from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from segquant_bench.hints import nearest
from segquant_bench.pipelines.data.canny import control_picture
from segquant_bench.pipelines.errors import PipelineError

if TYPE_CHECKING:
    from PIL import Image

    from segquant_bench.pipelines.config.sections import ModelConfig
    from segquant_bench.pipelines.data.datasets import Dataset

KINDS: dict[str, Callable[[Image.Image], Image.Image]] = {"canny": control_picture}
"""From a real picture to its control picture, by the name in `model.control`."""
ARGUMENTS = ("control_image", "image")
"""What pipelines with a ControlNet call their control pictures."""


class ControlPictures:
    """Control pictures of one split, made of its real pictures.

    Args:
        split: "evaluation", "calibration" or "held_out".
        kind: a key of `KINDS`.
        size: width and height of generated pictures.
    """

    def __init__(self, dataset: Dataset, split: str, kind: str, size: tuple[int, int], argument: str) -> None:
        self.dataset, self.split, self.size, self.argument = dataset, split, size, argument
        self.make = KINDS[kind]

    def __call__(self, indices: range) -> dict[str, list[Image.Image]]:
        pictures = self.dataset.read(self.split, indices, self.size)
        return {self.argument: [self.make(picture) for picture in pictures]}


def control_argument(pipeline: Any, config: ModelConfig) -> str | None:
    """The call's argument for control pictures; None without a ControlNet.

    Raises:
        PipelineError: only one of ControlNet and `model.control` is there.
    """
    has = getattr(pipeline, "controlnet", None) is not None
    name = type(pipeline).__name__
    if has and config.control is None:
        raise PipelineError(
            f"{name} has a ControlNet and model.control does not say what its control pictures are; set "
            f"model.control to one of {', '.join(KINDS)}"
        )
    if config.control is None:
        return None
    if config.control not in KINDS:
        raise PipelineError(f"model.control={config.control!r} is not known; {nearest(config.control, KINDS)}")
    if not has:
        raise PipelineError(
            f"{name} has no ControlNet, and model.control={config.control} asks for control pictures; set "
            "model.control=null, or model.pipeline and model.parts to a pipeline with one"
        )
    known = inspect.signature(type(pipeline).__call__).parameters
    return next(argument for argument in ARGUMENTS if argument in known)
