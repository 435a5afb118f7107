"""The stages that look at the unquantized denoiser: its inputs, its graph, the signs of what activations give it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from segquant_bench.pipelines.runtime import digests
from segquant_bench.pipelines.runtime.cache import Stage, write_json
from segquant_bench.pipelines.sampling import timesteps
from segquant_bench.pipelines.stages.control import Controlled

if TYPE_CHECKING:
    import numpy as np

    from segquant_bench.pipelines.sampling.samples import Sample

CALIBRATE_MODULES = (
    "sampling.generate",
    "loading.models",
    "sampling.collect",
    "sampling.timesteps",
    "sampling.samples",
    "sampling.shared_inputs",
)
STREAMS = {"calibration": 1, "held_out": 2}


class CalibrateStage(Controlled):
    """Denoiser inputs, and what they show."""

    def calibrate(self) -> Stage:
        """calibration/ and held_out/: denoiser inputs; steps.json: how likely each step was to be drawn."""
        return self._stage("calibrate", self.calibrate_inputs(), self._calibrate)

    def calibrate_inputs(self) -> dict[str, Any]:
        """All that inputs which are captured while sampling depend on."""
        return {
            **self._sampling(),
            "calibration": list(self.dataset.calibration),
            "held_out": list(self.dataset.held_out),
            **self.control_depends(*STREAMS),
            **self.calibrate_depends(),
        }

    def calibrate_depends(self) -> dict[str, Any]:
        """What inputs that are captured while sampling depend on, besides prompts, pipeline and call."""
        calibration = self.config.calibration
        return {
            "steps_per_prompt": calibration.steps_per_prompt,
            "seed": calibration.seed,
            "sampler": timesteps.depends(calibration, self.config.precision.name),
            "code": digests.modules_digest(*CALIBRATE_MODULES),
        }

    def _calibrate(self, folder: Path) -> None:
        from segquant_bench.pipelines.sampling.samples import save_samples

        weights = self.step_weights()
        for split in STREAMS:
            save_samples(self.captured(split, weights), folder / split)
        steps = timesteps.describe(self.config.calibration, weights, self.config.model.call.num_inference_steps)
        write_json(folder / "steps.json", steps)

    def step_weights(self) -> np.ndarray | None:
        """How likely each step is to be drawn for calibration, see `calibration.step_weights`."""
        from segquant_bench.pipelines.sampling.collect import step_weights

        model = self.config.model
        return step_weights(
            self.config.calibration, self.pipeline, self.denoiser, self.dataset.calibration, model.call.arguments(),
            stream=STREAMS["calibration"], batch_size=model.batch_size, precision=self.config.precision.name,
            device=self.device, inputs=self.prompt_inputs("calibration"),
        )  # fmt: skip

    def captured(self, split: str, weights: np.ndarray | None, component: str | None = None) -> list[Sample]:
        """Inputs of the denoiser, or of another component that runs at every step, for the prompts of a split.

        Held-out prompts always have uniform steps, so that samplers can be compared.
        """
        from segquant_bench.pipelines.sampling.collect import collect

        model, calibration = self.config.model, self.config.calibration
        return collect(
            self.pipeline, self.denoiser, getattr(self.dataset, split), model.call.arguments(),
            steps_per_prompt=calibration.steps_per_prompt, seed=calibration.seed, stream=STREAMS[split],
            batch_size=model.batch_size, label=f"calibrate ({component or 'denoiser'}, {split})",
            weights=weights if split == "calibration" else None, inputs=self.prompt_inputs(split),
            module=None if component is None else self.pipeline.components[component],
        )  # fmt: skip

    def statistics(self) -> Stage:
        """statistics.json: where the graph cuts the denoiser's linears, and the signs of what activations give them."""
        depends = {
            "calibrate": self.calibrate().key,
            "batch_size": self.config.calibration.batch_size,
            "code": [digests.modules_digest("stages.polarity", "sampling.samples"), digests.source_digest("segquant")],
        }
        return self._stage("statistics", depends, self._statistics)

    def _statistics(self, folder: Path) -> None:
        from segquant import find_segments
        from segquant_bench.pipelines.sampling.samples import Batches, load_samples
        from segquant_bench.pipelines.stages.polarity import graph_record, polarity

        samples = load_samples(self.calibrate().path / "calibration")
        batches = Batches(samples, self.config.calibration.batch_size, self.device)
        segments = find_segments(self.denoiser, (), next(iter(batches)))
        record = {"segments": graph_record(segments), "polarity": polarity(self.denoiser, segments, batches)}
        write_json(folder / "statistics.json", record)
