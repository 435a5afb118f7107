"""The schema of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segquant_bench.pipelines.bounds import check_bounds
from segquant_bench.pipelines.config.booleans import Flag, check_flags
from segquant_bench.pipelines.config.dataset import DatasetConfig
from segquant_bench.pipelines.config.engine import AUTO, COMPILE, KERNELS, EngineConfig
from segquant_bench.pipelines.config.explain import explain
from segquant_bench.pipelines.config.formats import PrecisionConfig
from segquant_bench.pipelines.config.labels import (
    PRESETS,
    check_correction,
    check_part,
    check_quantizer,
    check_title,
    label_of,
)
from segquant_bench.pipelines.config.objective import check_objective
from segquant_bench.pipelines.config.sections import (
    CORRECTIONS,
    CalibrationConfig,
    CorrectionConfig,
    GenerateConfig,
    LoggerConfig,
    MetricConfig,
    ModelConfig,
)
from segquant_bench.pipelines.config.shapes import refuse_extra
from segquant_bench.pipelines.config.target import check_target
from segquant_bench.pipelines.config.values import check_empty, check_references, check_values
from segquant_bench.pipelines.errors import PipelineError, one_line
from segquant_bench.pipelines.runtime.own_code import TARGET
from segquant_bench.texts import plain

REFERENCE = "reference"
"""The backend that computes what every other one is measured against."""
DENOISER = "denoiser"
TEXT_ENCODER = "text_encoder"
LONGEST_FOLDER = 240
"""Bytes: file systems have room for 255, and numbers are put before and behind."""


@dataclass
class RunConfig:
    """One run.

    `quantize` names attributes of the pipeline (denoiser, text_encoder, controlnet …). `components` changes quantizer
    settings: {text_encoder: {seglinear: false}}. `backend` runs quantized layers: a name, or one's own class as dotted
    path or {_target_: PATH}; `run` is the engine of the whole denoiser. `polarity` records signs of activations
    (Table 1), `speed` measures the denoiser. `stages` holds settings by name. A sweep tries `retries`
    times again what another try may mend. A search is after `objective`; no pictures are made where the layer error
    is more than `prune_above`.
    """

    name: str = MISSING
    model: ModelConfig = MISSING
    dataset: DatasetConfig = MISSING
    calibration: CalibrationConfig = MISSING
    correction: CorrectionConfig = MISSING
    quantizer: Any = MISSING
    precision: PrecisionConfig = MISSING
    metric: MetricConfig = MISSING
    logger: LoggerConfig = MISSING
    quantize: list[str] = field(default_factory=lambda: [DENOISER])
    components: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, Any] = field(default_factory=dict)
    backend: Any = REFERENCE
    run: EngineConfig = field(default_factory=EngineConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    polarity: Flag = False
    speed: Flag = False
    seed: int = 0
    cache: str = "outputs/cache"
    report: Flag = True
    retries: int = 1
    objective: list[str] = field(default_factory=lambda: ["output_error"])
    prune_above: float | None = None

    def __post_init__(self) -> None:
        check_bounds(self, "")
        check_flags(self, "")
        if not self.cache.strip():
            raise PipelineError("cache is empty; give a folder, cache=DIRECTORY")
        check_objective(self.objective, self.metric.metrics)
        check_target(self.quantizer)
        self._check_names()
        self._check_parts()
        self._check_offload()
        self._check_components()
        self._check_engine()

    def _check_names(self) -> None:
        if ".." in self.name.split("/"):
            raise PipelineError(f"name={self.name} leads out of the sweep's folder; leave .. out")
        check_title("precision.name", self.precision.name)
        check_title("model.name", self.model.name)
        if plain(self.name) != self.name:
            raise PipelineError(
                f"name={one_line(self.name)[:60]} has a line break or a control character, which no folder's name "
                "should; take it out"
            )
        longest = max(len(part.encode()) for part in self.name.split("/"))
        if longest > LONGEST_FOLDER:
            raise PipelineError(
                f"name={self.name[:60]}… is {longest} bytes long, and folders are named by it; give at most "
                f"{LONGEST_FOLDER}"
            )
        check_quantizer(self.quantizer)
        check_correction(self.correction.name, self.correction.method, CORRECTIONS)

    def _check_parts(self) -> None:
        check_part(self.quantizer, {"correction": self.correction, "calibration": self.calibration})
        if self.correction.prompts is not None and self.correction.prompts > self.calibration.prompts:
            raise PipelineError(
                f"correction.prompts={self.correction.prompts} is more than the {self.calibration.prompts} prompts "
                "of the calibration; lower it, or raise calibration.prompts"
            )
        if self.calibration.timesteps == "loss" and self.calibration.pilot > self.calibration.prompts:
            raise PipelineError(
                f"calibration.pilot={self.calibration.pilot} is more than the {self.calibration.prompts} prompts of "
                "the calibration; lower it, or raise calibration.prompts"
            )

    def _check_offload(self) -> None:
        if self.calibration.timesteps == "loss":
            self.check_whole("calibration.timesteps=loss")
        if self.model.embeddings == "cached" and self.text_encoders:
            raise PipelineError(
                f"quantize=[{','.join(self.quantize)}] needs text encoders, and model.embeddings=cached releases them; "
                "set model.embeddings=live"
            )

    def check_whole(self, what: str) -> None:
        """Refuse blocks on disk where `what` needs the whole denoiser."""
        if self.model.offload == "blocks":
            raise PipelineError(
                f"{what} needs the whole denoiser in memory, and model.offload=blocks leaves it on disk; set "
                "model.offload=none, or choose another"
            )

    def check_reference(self) -> None:
        """Refuse another backend for a quantizer with layers of its own."""
        if self.backend != REFERENCE:
            raise PipelineError(
                f"quantizer={self.quantizer_name} runs its own layers, which backend={self.backend} cannot; set "
                f"backend={REFERENCE}"
            )
        if self.run.name not in (AUTO, REFERENCE, COMPILE):
            raise PipelineError(
                f"quantizer={self.quantizer_name} runs its own layers, which run={self.run.name} cannot; set "
                f"run={REFERENCE} or run={COMPILE}"
            )

    def _check_engine(self) -> None:
        asked = f"run={self.run.name}"
        if self.run.name in (AUTO, REFERENCE):
            return
        if self.backend not in (REFERENCE, self.run.name):
            raise PipelineError(
                f"{asked} and backend={self.backend} both say what runs the quantized layers; leave one out"
            )
        if self.is_float and self.run.name in KERNELS:
            raise PipelineError(
                f"{asked} runs quantized layers, and quantizer=none has none; choose a quantizer, or run={REFERENCE}, "
                f"{COMPILE}, ort or openvino"
            )
        self.check_whole(asked)

    def check_alone(self) -> None:
        """Refuse further components for a quantizer of the denoiser alone."""
        if self.other_components:
            raise PipelineError(
                f"quantizer={self.quantizer_name} quantizes the denoiser alone; set quantize=[denoiser], or choose a "
                "method of segquant.presets other than plan"
            )

    def _check_components(self) -> None:
        named = list(dict.fromkeys(self.quantize))
        if named != self.quantize or not named:
            raise PipelineError(
                f"quantize=[{','.join(self.quantize)}] must name at least one component, and each once, for example "
                "quantize=[denoiser,text_encoder]; quantizer=none quantizes nothing"
            )
        if self.quantizer[TARGET] == f"{PRESETS}.plan":
            self.check_alone()
        for name, settings in self.components.items():
            if name not in named or name == DENOISER:
                raise PipelineError(f"components.{name} is no component in quantize=[{','.join(named)}]; add it there")
            if not isinstance(settings, dict):
                raise PipelineError(f"components.{name}={settings!r} is no setting; give components.{name}.KEY=VALUE")
            for key in (TARGET, "name"):
                if key in settings:
                    raise PipelineError(
                        f"components.{name}.{key} would give it another method than {self.quantizer_name}, which is "
                        "what tables tell of all components; leave it out"
                    )
        if DENOISER not in named and not self.is_float:
            self._check_float_denoiser()

    def _check_float_denoiser(self) -> None:
        asked = f"quantize=[{','.join(self.quantize)}] leaves the denoiser as it is"
        if self.is_corrected:
            raise PipelineError(
                f"{asked}, and correction={self.correction.name} corrects its predictions; set correction=none, or "
                "add denoiser to quantize"
            )
        for key in ("skip", "overrides"):
            if self.quantizer.get(key):
                raise PipelineError(
                    f"{asked}, whose layers quantizer.{key} names; set +components.{self.quantize[0]}.{key} instead"
                )

    @property
    def other_components(self) -> tuple[str, ...]:
        """The quantized components beside the denoiser."""
        return () if self.is_float else tuple(name for name in self.quantize if name != DENOISER)

    @property
    def quantizes_denoiser(self) -> bool:
        return not self.is_float and DENOISER in self.quantize

    @property
    def text_encoders(self) -> tuple[str, ...]:
        return tuple(name for name in self.other_components if TEXT_ENCODER in name)

    @property
    def preset_name(self) -> str:
        """The function in the quantizer's `_target_`."""
        return str(self.quantizer["_target_"]).rpartition(".")[2]

    @property
    def quantizer_name(self) -> str:
        """Its `name`, else its function's."""
        return label_of(self.quantizer)

    @property
    def is_corrected(self) -> bool:
        """Whether predictions are corrected; never without quantization."""
        return self.correction.method != "none" and not self.is_float

    @property
    def is_float(self) -> bool:
        return self.quantizer_name == "none"

    @property
    def precision_name(self) -> str:
        """The precision, or the model's dtype where nothing is quantized."""
        return self.model.dtype if self.is_float else self.precision.name


def validate(config: DictConfig) -> RunConfig:
    """The checked run configuration.

    Raises:
        PipelineError: a missing key, a wrong type, or out of range.
    """
    refuse_extra(config, RunConfig, "")
    check_references(config)
    # whole sections first: interpolations into a missing one cannot even be looked at
    missing = [str(key) for key in config if OmegaConf.is_missing(config, key)]
    missing = missing or sorted(OmegaConf.missing_keys(config))
    if missing:
        raise PipelineError(f"no value for {', '.join(missing)}; add {missing[0]}=VALUE to the command line")
    try:
        check_values(config)
        run = OmegaConf.to_object(config)
        check_empty(config)  # behind what knows which values there are
    except OmegaConfBaseException as error:
        if isinstance(error.__cause__, PipelineError):
            raise error.__cause__ from error
        raise PipelineError(explain(error)) from error
    if not isinstance(run, RunConfig):
        raise PipelineError("the configuration was not composed on the schema; put 'schema' first in its defaults list")
    return run
