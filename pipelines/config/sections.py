"""The sections of a run's configuration."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from segquant_bench.pipelines.bounds import check_bounds
from segquant_bench.pipelines.config.booleans import Flag, FlagOrNull, check_flags
from segquant_bench.pipelines.errors import PipelineError, one_line, one_of
from segquant_bench.pipelines.runtime.own_code import TARGET

DTYPES = ("float32", "bfloat16", "float16")
FID_EXTRACTORS = ("auto", "inception", "effnet_lite0")
INCEPTION_FILE = "inception-2015-12-05.pt"
LPIPS_TRUNKS = ("alex", "vgg", "squeeze")
TIMESTEPS = ("uniform", "normal", "all", "loss")
CORRECTIONS = ("none", "ptqd", "tac", "affine")
OFFLOADS = ("none", "components", "blocks")
EMBEDDINGS = ("live", "cached")


@dataclass
class CallConfig:
    """Arguments of the pipeline's `__call__`; None is not passed."""

    num_inference_steps: int = MISSING
    guidance_scale: float = MISSING
    height: int = MISSING
    width: int = MISSING
    max_sequence_length: int | None = None
    negative_prompt: str | None = None
    true_cfg_scale: float | None = None
    controlnet_conditioning_scale: float | None = None
    use_resolution_binning: FlagOrNull = None
    clean_caption: FlagOrNull = None

    def __post_init__(self) -> None:
        check_bounds(self, "model.call.")
        check_flags(self, "model.call.")

    def arguments(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass
class PartConfig:
    """A component from elsewhere (a ControlNet): its diffusers class and place."""

    kind: str = MISSING
    path: str | None = None
    repo: str | None = None
    revision: str | None = None
    variant: str | None = None

    def __post_init__(self) -> None:
        if (self.path is None) and (self.repo is None):
            raise PipelineError(
                f"the {self.kind} in model.parts names no weights; give it path=DIRECTORY or repo=OWNER/NAME"
            )


@dataclass
class ModelConfig:
    """Which diffusers pipeline: a local directory (`path`) or a repository of the hub (`repo`).

    `pipeline`, `parts`, `scheduler`: instead of the directory's. `embeddings`: "live", or "cached" (prompts encoded
    before the denoiser is loaded). `offload`: "none", "components" (wait in main memory) or "blocks" (read from disk).
    `convolutions`: quantize nn.Conv2d too. `control`: kind of control pictures: "canny".
    """

    name: str = MISSING
    path: str | None = None
    repo: str | None = None
    revision: str | None = None
    variant: str | None = None
    denoiser: str | None = None
    dtype: str = "float32"
    device: str = "auto"
    batch_size: int = 16
    pipeline: str | None = None
    parts: dict[str, PartConfig] = field(default_factory=dict)
    scheduler: str | None = None
    scheduler_settings: dict[str, Any] = field(default_factory=dict)
    embeddings: str = "live"
    offload: str = "none"
    convolutions: Flag = False
    control: str | None = None
    call: CallConfig = MISSING

    def __post_init__(self) -> None:
        if (self.path is None) and (self.repo is None):
            raise PipelineError(
                f"model {self.name!r} names no weights; set model.path=DIRECTORY or model.repo=OWNER/NAME"
            )
        one_of("model.dtype", self.dtype, DTYPES)
        one_of("model.embeddings", self.embeddings, EMBEDDINGS)
        one_of("model.offload", self.offload, OFFLOADS)
        check_bounds(self, "model.")
        check_flags(self, "model.")


@dataclass
class CalibrationConfig:
    """Which denoiser inputs the quantizer sees.

    `prompts` with `steps_per_prompt` timesteps each (null: all), chosen by `timesteps`: uniform; normal around `mean`
    with `std` (fractions of the schedule, 0 is the clean picture); by loss on `pilot` prompts; or by one's own function
    {_target_: PATH, …} (`sampling.own_timesteps`). `held_out` prompts, for layer errors, have uniform steps.
    """

    name: str = MISSING
    timesteps: Any = "uniform"
    prompts: int = 32
    held_out: int = 8
    steps_per_prompt: int | None = 4
    mean: float = 0.4
    std: float = 0.5
    pilot: int = 4
    batch_size: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.timesteps, dict):
            one_of("calibration.timesteps", str(self.timesteps), TIMESTEPS)
        elif not isinstance(self.timesteps.get(TARGET), str):
            raise PipelineError(
                f"calibration.timesteps={self.timesteps} has no {TARGET}; give it one, their_pkg.function"
            )
        check_bounds(self, "calibration.")
        if (self.timesteps == "all") != (self.steps_per_prompt is None):
            raise PipelineError(
                f"calibration.timesteps={self.timesteps} with calibration.steps_per_prompt={self.steps_per_prompt}: "
                "timesteps=all takes every step (steps_per_prompt=null), the others need a number of steps"
            )


@dataclass
class CorrectionConfig:
    """What is corrected at sampling time, fitted on `prompts` calibration prompts (null: all).

    `method` is none, ptqd, tac or affine. PTQD: `variance` lessens the scheduler's noise. TAC: factors within `clip` of
    1; `input_bias` corrects the latents' mean. Affine: `grid` x `grid` blocks; `ridge` pulls scale to 1 and shift to 0,
    as a share of the prediction's mean square.
    """

    name: str = MISSING
    method: str = MISSING
    prompts: int | None = None
    variance: Flag = True
    clip: float = 0.2
    input_bias: Flag = True
    grid: int = 8
    ridge: float = 0.01

    def __post_init__(self) -> None:
        one_of("correction.method", self.method, CORRECTIONS)
        check_bounds(self, "correction.")
        check_flags(self, "correction.")


@dataclass
class BackendsConfig:
    """Which networks judge, as in `eval.Backends`."""

    fid: str = "auto"
    inception: str | None = None
    clip: str = "emoji_clip"
    clip_path: str | None = None
    clip_pretrained: str = "openai"
    candidates: int = 100
    lpips: str = "alex"
    batch_size: int = 32

    def __post_init__(self) -> None:
        one_of("metric.backends.fid", self.fid, FID_EXTRACTORS)
        one_of("metric.backends.lpips", self.lpips, LPIPS_TRUNKS)
        if self.inception and self.inception.strip() and not Path(self.inception).exists():
            raise PipelineError(
                f"metric.backends.inception={one_line(self.inception)[:200]} is not there; give {INCEPTION_FILE} or a "
                "folder with it, or null"
            )
        check_bounds(self, "metric.backends.")


@dataclass
class MetricConfig:
    """`metrics` are names of `eval.evaluate`."""

    name: str = MISSING
    metrics: list[str] = MISSING
    bootstrap: int = 1000
    seed: int = 0
    backends: BackendsConfig = field(default_factory=BackendsConfig)

    def __post_init__(self) -> None:
        if not self.metrics:
            raise PipelineError("metric.metrics is empty; name at least one metric, for example psnr")
        check_bounds(self, "metric.")


@dataclass
class GenerateConfig:
    """How pictures and calibration inputs are sampled: by so many processes, each on a GPU of its own."""

    processes: int = 1

    def __post_init__(self) -> None:
        check_bounds(self, "generate.")


@dataclass
class LoggerConfig:
    """Where runs are shown: a module of `loggers.members`, or a class of one's own in `_target_`, with `arguments`.

    The other keys are those of the loggers that ship; each reads some of them.
    """

    name: str = MISSING
    project: str = "segquant"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    mode: str = "auto"
    images: int = 32
    artifact: Flag = True
    _target_: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        one_of("logger.mode", self.mode, ("auto", "offline", "online"))
        check_bounds(self, "logger.")
        check_flags(self, "logger.")
