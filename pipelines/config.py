"""The schema of a run: what every key may hold, checked before anything is loaded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipelines.errors import PipelineError, nearest, one_line

DTYPES = ("float32", "bfloat16", "float16")
FID_EXTRACTORS = ("auto", "inception", "effnet_lite0")
LPIPS_TRUNKS = ("alex", "vgg", "squeeze")
QUANTIZER_PACKAGE = "segquant.presets."
ZOO = Path(__file__).resolve().parent / "zoo"


def _one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise PipelineError(f"{key}={value!r} is not known; {nearest(value, known)}")


def _at_least(key: str, value: float, least: float) -> None:
    if value < least:
        raise PipelineError(f"{key}={value} is out of range; it must be at least {least}")


@dataclass
class CallConfig:
    """What is passed to the pipeline's `__call__` besides prompt and generator; None is not passed."""

    num_inference_steps: int = MISSING
    guidance_scale: float = MISSING
    height: int = MISSING
    width: int = MISSING
    max_sequence_length: int | None = None
    negative_prompt: str | None = None

    def __post_init__(self) -> None:
        _at_least("model.call.num_inference_steps", self.num_inference_steps, 1)
        _at_least("model.call.guidance_scale", self.guidance_scale, 0)
        _at_least("model.call.height", self.height, 8)
        _at_least("model.call.width", self.width, 8)
        if self.max_sequence_length is not None:
            _at_least("model.call.max_sequence_length", self.max_sequence_length, 0)

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments that are set."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass
class ModelConfig:
    """Which diffusers pipeline: a local directory (`path`) or a repository of the hub (`repo`)."""

    name: str = MISSING
    path: str | None = None
    repo: str | None = None
    revision: str | None = None
    variant: str | None = None
    denoiser: str | None = None
    dtype: str = "float32"
    device: str = "auto"
    batch_size: int = 16
    call: CallConfig = MISSING

    def __post_init__(self) -> None:
        if (self.path is None) and (self.repo is None):
            raise PipelineError(
                f"model {self.name!r} names no weights; set model.path=DIRECTORY or model.repo=OWNER/NAME"
            )
        _one_of("model.dtype", self.dtype, DTYPES)
        _at_least("model.batch_size", self.batch_size, 1)


@dataclass
class DatasetConfig:
    """Which prompts, and which real pictures.

    Either `archive` (a zip of captions.jsonl and PNGs, every row with its split) or two prompt files, one
    prompt a line, and a folder `real` of PNGs. `size` evaluation prompts are drawn with `seed`; None takes
    all in order.
    """

    name: str = MISSING
    archive: str | None = None
    evaluation_prompts: str | None = None
    calibration_prompts: str | None = None
    real: str | None = None
    size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.archive is None and (self.evaluation_prompts is None or self.calibration_prompts is None):
            raise PipelineError(
                f"dataset {self.name!r} names no prompts; set dataset.archive=FILE.zip, or both "
                "dataset.evaluation_prompts=FILE and dataset.calibration_prompts=FILE"
            )
        if self.size is not None:
            _at_least("dataset.size", self.size, 1)


@dataclass
class CalibrationConfig:
    """Which denoiser inputs the quantizer sees.

    `prompts` calibration prompts with `steps_per_prompt` timesteps each, drawn uniformly over the schedule;
    and `held_out` further prompts, treated alike, on which layer errors are measured. `batch_size` inputs go
    through the denoiser at once when it is observed.
    """

    name: str = MISSING
    prompts: int = 32
    held_out: int = 8
    steps_per_prompt: int = 4
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least("calibration.prompts", self.prompts, 1)
        _at_least("calibration.held_out", self.held_out, 1)
        _at_least("calibration.steps_per_prompt", self.steps_per_prompt, 1)
        _at_least("calibration.batch_size", self.batch_size, 1)


@dataclass
class PrecisionConfig:
    """Which bits, a name of `segquant.PRECISIONS`."""

    name: str = MISSING


@dataclass
class BackendsConfig:
    """Which networks judge; the fields are those of `eval.Backends`."""

    fid: str = "auto"
    inception: str | None = None
    clip: str = "emoji_clip"
    clip_path: str | None = None
    clip_pretrained: str = "openai"
    candidates: int = 100
    lpips: str = "alex"
    batch_size: int = 32

    def __post_init__(self) -> None:
        _one_of("metric.backends.fid", self.fid, FID_EXTRACTORS)
        _one_of("metric.backends.lpips", self.lpips, LPIPS_TRUNKS)
        _at_least("metric.backends.candidates", self.candidates, 2)
        _at_least("metric.backends.batch_size", self.batch_size, 1)


@dataclass
class MetricConfig:
    """Which judgement; `metrics` are names of `eval.evaluate`."""

    name: str = MISSING
    metrics: list[str] = MISSING
    bootstrap: int = 1000
    seed: int = 0
    backends: BackendsConfig = field(default_factory=BackendsConfig)

    def __post_init__(self) -> None:
        if not self.metrics:
            raise PipelineError("metric.metrics is empty; name at least one metric, for example psnr")
        _at_least("metric.bootstrap", self.bootstrap, 0)


@dataclass
class LoggerConfig:
    """Where results are shown: `name` is wandb or none."""

    name: str = MISSING
    project: str = "segquant"
    entity: str | None = None
    group: str | None = None
    mode: str = "auto"
    images: int = 32
    artifact: bool = True

    def __post_init__(self) -> None:
        _one_of("logger.name", self.name, ("wandb", "none"))
        _one_of("logger.mode", self.mode, ("auto", "offline", "online"))
        _at_least("logger.images", self.images, 0)


@dataclass
class RunConfig:
    """One run: model, data, calibration, quantizer, precision, judgement."""

    name: str = MISSING
    model: ModelConfig = MISSING
    dataset: DatasetConfig = MISSING
    calibration: CalibrationConfig = MISSING
    quantizer: Any = MISSING
    precision: PrecisionConfig = MISSING
    metric: MetricConfig = MISSING
    logger: LoggerConfig = MISSING
    seed: int = 0
    cache: str = "outputs/cache"
    report: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.quantizer, dict) or "_target_" not in self.quantizer:
            raise PipelineError(
                "the quantizer has no _target_; choose one of conf/quantizer, for example quantizer=rtn"
            )
        target = str(self.quantizer["_target_"])
        if not target.startswith(QUANTIZER_PACKAGE):
            raise PipelineError(
                f"quantizer._target_={target!r} is refused; it must name a function of segquant.presets"
            )

    @property
    def quantizer_name(self) -> str:
        """The preset's name."""
        return str(self.quantizer["_target_"]).removeprefix(QUANTIZER_PACKAGE)

    @property
    def is_float(self) -> bool:
        """Whether the run leaves the denoiser as it is."""
        return self.quantizer_name == "none"

    @property
    def precision_name(self) -> str:
        """The precision of the denoiser: the model's own dtype where nothing is quantized."""
        return self.model.dtype if self.is_float else self.precision.name


def register() -> None:
    """Make the schema known to Hydra as `schema`, and two resolvers to OmegaConf.

    `${zoo:NAME}` is the path of a file shipped in pipelines/zoo; `${leaf:a.b.c}` is "c".
    """
    ConfigStore.instance().store(name="schema", node=RunConfig)
    OmegaConf.register_new_resolver("zoo", lambda name: str(ZOO / name), replace=True)
    OmegaConf.register_new_resolver("leaf", lambda dotted: dotted.rpartition(".")[2], replace=True)


def _refuse_extra(config: DictConfig, schema: type, prefix: str) -> None:
    """Refuse keys that `+key=value` added and nothing would read; its preset checks the quantizer's."""
    known = {item.name for item in fields(schema)}
    for key in config:
        if key not in known:
            raise PipelineError(f"there is no key {prefix + str(key)!r}; {nearest(str(key), known)}")
        nested = OmegaConf.get_type(config, key)
        if not OmegaConf.is_missing(config, key) and is_dataclass(nested):
            _refuse_extra(config[key], nested, f"{prefix}{key}.")


def validate(config: DictConfig) -> RunConfig:
    """The checked run configuration.

    Raises:
        PipelineError: a key is missing, of the wrong type, or out of range.
    """
    _refuse_extra(config, RunConfig, "")
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise PipelineError(f"no value for {', '.join(missing)}; add {missing[0]}=VALUE to the command line")
    try:
        run = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        if isinstance(error.__cause__, PipelineError):
            raise error.__cause__ from error
        raise PipelineError(one_line(error)) from error
    if not isinstance(run, RunConfig):
        raise PipelineError("the configuration was not composed on the schema; put 'schema' first in its defaults list")
    return run


def config_hash(run: RunConfig, model_fingerprint: str) -> str:
    """A short stable name of what the numbers depend on: no logger, no paths, no cache, no device.

    Two runs of the unquantized model at different `precision` are one and the same.
    """
    raw = asdict(run)
    for key in ("name", "logger", "cache", "report"):
        del raw[key]
    for key in ("path", "repo", "revision", "variant", "device"):
        del raw["model"][key]
    raw["model"]["fingerprint"] = model_fingerprint
    for section, keys in (
        (raw["dataset"], ("archive", "evaluation_prompts", "calibration_prompts", "real")),
        (raw["metric"]["backends"], ("inception", "clip_path")),
    ):
        for key in keys:
            section[key] = Path(section[key]).name if section[key] else None
    if run.is_float:
        raw["quantizer"], raw["precision"], raw["calibration"] = "none", run.model.dtype, None
    text = json.dumps(raw, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
