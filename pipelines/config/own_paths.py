"""The user's own code in a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.runtime.own_code import TARGET, is_own
from segquant_bench.pipelines.runtime.own_modules import own_digest

if TYPE_CHECKING:
    from segquant_bench.pipelines.config.schema import RunConfig
    from segquant_bench.pipelines.config.sections import ModelConfig


def path_of(value: Any) -> str:
    """The dotted path, also in `_target_`; else empty."""
    found = value.get(TARGET) if isinstance(value, Mapping) else value
    return found if isinstance(found, str) and "." in found else ""


def model_paths(model: ModelConfig) -> dict[str, str]:
    """Key -> the user's class in the pipeline."""
    named = {"model.pipeline": model.pipeline, "model.scheduler": model.scheduler}
    named |= {f"model.parts.{name}.kind": part.kind for name, part in model.parts.items()}
    return _own(named)


def stage_paths(stages: Mapping[str, Any]) -> dict[str, str]:
    """Name -> dotted path, of the stages in `RunConfig.stages` that name code.

    Raises:
        PipelineError: a `_target_` that is no text.
    """
    found = {name: value[TARGET] for name, value in stages.items() if isinstance(value, Mapping) and TARGET in value}
    for name, path in found.items():
        if not isinstance(path, str):
            raise PipelineError(f"stages.{name}.{TARGET}={path!r} is no dotted path; give their_pkg.module.STAGE")
    return found


def own_paths(config: RunConfig) -> dict[str, str]:
    """Key -> dotted path of the user's code."""
    named = {f"dataset.{TARGET}": config.dataset._target_}
    named |= {f"metric.metrics.{name}": name for name in config.metric.metrics}
    named |= {f"stages.{name}.{TARGET}": path for name, path in stage_paths(config.stages).items()}
    if not config.is_float:
        named |= {
            f"quantizer.{TARGET}": config.quantizer[TARGET],
            f"precision.{TARGET}": config.precision._target_,
            "calibration.timesteps": path_of(config.calibration.timesteps),
            "backend": path_of(config.backend),
        }
    return model_paths(config.model) | _own(named)


def own_record(config: RunConfig) -> dict[str, dict[str, str | None]]:
    """Key -> path and hash of the user's code."""
    return {key: {"path": path, "code": own_digest(path)} for key, path in sorted(own_paths(config).items())}


def _own(named: Mapping[str, str | None]) -> dict[str, str]:
    return {key: path for key, path in named.items() if path and "." in path and is_own(path)}
