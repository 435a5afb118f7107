"""Keys that there are, and where sections and lists stand."""

from __future__ import annotations

import functools
from dataclasses import fields, is_dataclass
from typing import Any, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf

from segquant_bench.pipelines.errors import PipelineError, one_line, unknown_key


def refuse_extra(config: DictConfig, schema: type, prefix: str) -> None:
    """PipelineError for keys, and values in the place of sections and lists, that the dataclass `schema` has not."""
    # The preset checks the quantizer's own keys.
    known = {item.name for item in fields(schema)}
    for key in map(str, config):
        if key not in known:
            raise PipelineError(unknown_key(f"{prefix}{key}", known))
        _check_section(config, schema, prefix, key)
        check_list(config, schema, prefix, key)
        nested = OmegaConf.get_type(config, key)
        if not OmegaConf.is_missing(config, key) and is_dataclass(nested):
            refuse_extra(config[key], nested, f"{prefix}{key}.")


def check_list(config: DictConfig, schema: type, prefix: str, key: str) -> None:
    """Refuse lists and mappings in the place of a list's names."""
    if _hints(schema)[key] != list[str] or OmegaConf.is_missing(config, key):
        return
    listed: Any = OmegaConf.to_container(config[key], resolve=False) if isinstance(config[key], ListConfig) else []
    wrong = [each for each in listed if not isinstance(each, str)]
    if wrong:
        told = one_line(str(wrong[0]))[:60]
        raise PipelineError(f"{prefix}{key} holds {told}, which is no text; write '{prefix}{key}=[NAME,NAME]'")


def _check_section(config: DictConfig, schema: type, prefix: str, key: str) -> None:
    """Refuse a value in the place of a section, as by ${…}."""
    hint = _hints(schema)[key]
    is_section = hint is dict or get_origin(hint) is dict or is_dataclass(hint)
    if is_section and not OmegaConf.is_missing(config, key) and not isinstance(config[key], DictConfig):
        told = one_line(str(config[key]))[:60]
        raise PipelineError(f"{prefix}{key}={told} is no section; set {prefix}{key}.KEY=VALUE")


@functools.cache
def _hints(schema: type) -> dict[str, Any]:
    return get_type_hints(schema)
