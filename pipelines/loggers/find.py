"""A logger by its name, or by the path of one's own."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import MISSING, fields

from segquant_bench.pipelines.config.sections import LoggerConfig
from segquant_bench.pipelines.errors import PipelineError, one_of
from segquant_bench.pipelines.loggers import members
from segquant_bench.pipelines.loggers.logger import Logger
from segquant_bench.pipelines.runtime import own_code

EVERYONES = frozenset({"name", own_code.TARGET, "arguments"})


def find_logger(config: LoggerConfig) -> Logger:
    """The configured logger, checked.

    Raises:
        PipelineError: no such logger, a setting that it does not read, or whatever its `check` refuses.
    """
    kind = _own(config._target_) if config._target_ else _member(config.name)
    if config.name != "none":  # which any command line may end with
        _check_settings(config, kind)
    logger = kind(config)
    logger.check()
    return logger


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(members.__path__))


def _member(name: str) -> type[Logger]:
    one_of("logger.name", name, names())
    kind: type[Logger] = importlib.import_module(f"{members.__name__}.{name}").LOGGER
    return kind


def _own(path: str) -> type[Logger]:
    key = f"logger.{own_code.TARGET}"
    kind = own_code.find(path, key)
    if not (isinstance(kind, type) and issubclass(kind, Logger)):
        raise PipelineError(
            f"{key}={path} is no logger; name a class that derives from segquant_bench.pipelines.loggers.logger.Logger"
        )
    return kind


def _check_settings(config: LoggerConfig, kind: type[Logger]) -> None:
    for item in fields(config):
        if item.name in EVERYONES or item.name in kind.settings:
            continue
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        if getattr(config, item.name) != default:
            known = ", ".join(f"logger.{name}" for name in sorted(kind.settings)) or "no settings"
            raise PipelineError(
                f"logger={config.name} has no use for logger.{item.name}; leave it out (it reads {known})"
            )
    if config.arguments and not config._target_:
        raise PipelineError(f"logger.arguments are those of a logger of one's own; leave them out of {config.name}")
