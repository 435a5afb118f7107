"""What runs with control pictures depend on and are given, beyond what every run is."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from segquant_bench.pipelines.runtime import digests
from segquant_bench.pipelines.stages.context import Context

if TYPE_CHECKING:
    from segquant_bench.pipelines.sampling.generate import PromptInputs

CONTROL_MODULES = ("data.canny", "data.control", "data.pictures")


class Controlled(Context):
    """Control pictures of the prompts of a run; nothing for models without a ControlNet."""

    @cached_property
    def control_argument(self) -> str | None:
        """The argument of the pipeline's call that takes control pictures."""
        from segquant_bench.pipelines.data.control import control_argument

        return control_argument(self.pipeline, self.config.model)

    def prompt_inputs(self, split: str) -> PromptInputs | None:
        """Further arguments of the pipeline's call for the prompts of "evaluation", "calibration" or "held_out"."""
        argument = self.control_argument
        if argument is None:
            return None
        from segquant_bench.pipelines.data.control import ControlPictures

        call = self.config.model.call
        return ControlPictures(self.dataset, split, str(self.config.model.control), (call.width, call.height), argument)

    def control_depends(self, *splits: str) -> dict[str, Any]:
        """What control pictures add to what a stage depends on; empty for models without."""
        kind = self.config.model.control
        if kind is None:
            return {}
        pictures = {split: self.dataset.pictures_digest(split) for split in splits}
        record = {"kind": kind, "fit": self.dataset.fit, "pictures": pictures}
        return {"control": {**record, "code": digests.modules_digest(*CONTROL_MODULES)}}
