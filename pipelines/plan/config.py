from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segquant_bench.hidden import visible
from segquant_bench.hints import nearest
from segquant_bench.pipelines.architectures import architecture_names
from segquant_bench.pipelines.config.arguments import with_open_keys
from segquant_bench.pipelines.config.booleans import check_flags
from segquant_bench.pipelines.config.formats import SIDES, PrecisionConfig
from segquant_bench.pipelines.config.precision import register_precision, with_name
from segquant_bench.pipelines.config.quantizer import build_quantizer
from segquant_bench.pipelines.config.resolvers import register as register_run
from segquant_bench.pipelines.config.schema import DENOISER
from segquant_bench.pipelines.config.searchpath import check_search_path
from segquant_bench.pipelines.config.sections import DTYPES, ModelConfig
from segquant_bench.pipelines.errors import PipelineError, one_line, one_of
from segquant_bench.pipelines.runtime.own_code import is_own
from segquant_bench.pipelines.runtime.paths import CONF

_GROUP = "model="
AUTO = "auto"
USUAL = ("w8a8_tensor", "w8a8", "w8a8_dynamic", "fp8", "w4a8_channel", "w4a8", "w4a4", "w4a16")
"""Precisions at which sizes are estimated where none is asked for."""
DTYPE = "bfloat16"
"""Of models that are read from a configuration alone."""


@dataclass
class PlanModel(ModelConfig):
    """The model of a run, or one without weights.

    `architecture` names a shipped configuration; `target` MODULE:FUNCTION returns a module, perhaps with its forward's
    keyword arguments; `inputs` their shapes, {hidden_states: [1, 16, 64, 64]}. `dtype` "auto" is that of `target`'s
    module, else bfloat16.
    """

    name: str = "model"
    dtype: str = AUTO
    architecture: str | None = None
    target: str | None = None
    inputs: Any = None

    def __post_init__(self) -> None:
        """No weights needed; `compose_plan` checks."""
        check_flags(self, "model.")


@dataclass
class PlanConfig:
    """One plan; sizes are estimated at `precisions`, at `USUAL` ones if empty."""

    model: PlanModel = field(default_factory=PlanModel)
    quantizer: Any = MISSING
    quantize: list[str] = field(default_factory=lambda: [DENOISER])
    precisions: list[str] = field(default_factory=list)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)


def model_names(folders: Sequence[Path] = ()) -> tuple[str, ...]:
    """Options of conf/model and `folders`, and shipped configurations without one."""
    options = {path.stem for folder in (CONF, *folders) for path in visible((folder / "model").glob("*.yaml"), folder)}
    return tuple(sorted(options | set(architecture_names())))


def compose_plan(overrides: Sequence[str]) -> DictConfig:
    """The configuration of a command line.

    Raises:
        PipelineError: no model or several, bad values, or no such configuration directory.
    """
    _register()
    overrides = with_open_keys(with_name(overrides))
    folders = check_search_path(overrides)
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = _composed([_named(override, folders) for override in overrides])
    _check(config)
    return config


def _composed(overrides: list[str]) -> DictConfig:
    try:
        return compose("plan", overrides=overrides)
    except ValueError as error:
        if type(error) is not ValueError:  # Hydra's own kinds are told apart by `config.explain`
            raise
        raise PipelineError(f"{one_line(error)}; give every group the name of an option, GROUP=NAME") from error


def _register() -> None:
    register_run()
    ConfigStore.instance().store(name="plan_schema", node=PlanConfig)


def _named(override: str, folders: Sequence[Path]) -> str:
    if not override.startswith(_GROUP):
        return override
    name = override.removeprefix(_GROUP)
    if name not in model_names(folders):
        raise PipelineError(f"model={name} is no model; {nearest(name, model_names(folders))}")
    is_option = any((folder / "model" / f"{name}.yaml").is_file() for folder in (CONF, *folders))
    return override if is_option else f"model.architecture={name}"


def _check(config: DictConfig) -> None:
    model = config.model
    keys = ("path", "repo", "architecture", "target")
    named = [f"model.{key}={model[key]}" for key in keys if model[key] is not None]
    if not named:
        raise PipelineError(
            f"there is no model to plan; give model=NAME ({', '.join(model_names())}), model.path=DIRECTORY, "
            "model.repo=OWNER/NAME or model.target=MODULE:FUNCTION"
        )
    if len(named) > 1 and set(named) != {f"model.path={model.path}", f"model.repo={model.repo}"}:
        raise PipelineError(f"more than one model is named, {' and '.join(named)}; leave all but one out")
    one_of("model.dtype", model.dtype, (AUTO, *DTYPES))
    _register_precision(config)
    for name in config.precisions:
        _check_known(name)
    if not config.quantize or len(set(config.quantize)) < len(config.quantize):
        raise PipelineError(f"quantize={list(config.quantize)} must name every component once, for example [denoiser]")


def _check_known(name: str) -> None:
    # Put off: slow to import; bad input and --help do not wait for it.
    from segquant import PRECISIONS
    from segquant.numerics.precisions import scheme_of

    try:
        scheme_of(name)
    except ValueError:
        one_of("precisions", name, PRECISIONS)


def _sides(config: DictConfig) -> list[DictConfig | None]:
    return [config.precision[side] for side in SIDES]


def _register_precision(config: DictConfig) -> None:
    if OmegaConf.is_missing(config.precision, "name"):
        if any(each is None or any(value is not None for value in each.values()) for each in _sides(config)):
            raise PipelineError("precision has fields and no name; add precision=custom, or the name of one to change")
        return
    try:
        precision = OmegaConf.to_object(config.precision)
    except OmegaConfBaseException as error:
        raise (
            error.__cause__ if isinstance(error.__cause__, PipelineError) else PipelineError(one_line(error))
        ) from error
    assert isinstance(precision, PrecisionConfig)
    register_precision(precision)
    if not config.precisions:
        config.precisions = [precision.name]


def methods_of(config: DictConfig) -> dict[str, Any]:
    """The `Method` at each precision, or why it is refused.

    Raises:
        PipelineError: another tool, one that decides by data, or no precision left.
    """
    # Put off: slow to import; bad input and --help do not wait for it.
    from segquant import Method

    found: dict[str, Method | str] = {}
    for name in config.precisions or USUAL:
        config.precision.name = name
        quantizer = _quantizer_of(config)
        try:
            method = build_quantizer(quantizer)
            found[name] = method if isinstance(method, Method) else f"{method.name} has no plan of ours"
        except PipelineError as error:
            found[name] = str(error)
    if all(isinstance(method, str) for method in found.values()):
        raise PipelineError(str(next(iter(found.values()))))
    return found


def _quantizer_of(config: DictConfig) -> dict[str, Any]:
    given = None if config.quantizer is None else OmegaConf.to_container(config.quantizer, resolve=True)
    if not isinstance(given, dict) or "_target_" not in given:
        raise PipelineError(
            "quantizer names no method (quantizer._target_); give one of conf/quantizer, for example "
            "quantizer=segquant_g"
        )
    quantizer = {str(key): value for key, value in given.items()}
    package, _, name = str(quantizer["_target_"]).rpartition(".")
    if not is_own(f"{package}.{name}") and (package != "segquant.presets" or name in ("none", "auto")):
        reason = "decides for every layer by data" if name == "auto" else "has no plan of ours"
        raise PipelineError(
            f"quantizer={name} {reason}; plan with a method of segquant.presets, for example quantizer=segquant_g"
            + (", or with quantizer=plan and the plan.json of its run" if name == "auto" else "")
        )
    return quantizer
