"""What a sweep was asked for, as loggers are told it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segquant_bench.eval.jobs import Listed
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.loggers.logger import About

NO_PART = ("hydra", "logger", "cache", "report", "retries", "generate")
"""Of what a sweep is: the same one with others goes on as the same run."""
TAGGED = ("model", "quantizer", "precision", "dataset")
MOST_TAGS = 20
"""Of one key."""


@dataclass(frozen=True)
class Asked:
    """What a sweep was asked for.

    Attributes:
        logger: its configuration.
        overrides: the command line.
        cache: shared by its jobs.
        config: what its jobs share, as they were composed before their own overrides; JSON types.
        sweeper: the settings of what draws its jobs.
        launcher: what runs them.
    """

    logger: Any
    overrides: Sequence[str]
    cache: Path
    config: dict[str, Any]
    sweeper: Any = None
    launcher: str = ""

    @staticmethod
    def of(config: DictConfig) -> Asked:
        overrides = OmegaConf.select(config, "hydra.overrides.task") or []
        sweeper = OmegaConf.select(config, "hydra.sweeper")
        return Asked(
            config.get("logger"),
            [str(each) for each in overrides],
            Path(str(config.get("cache"))).absolute(),
            {str(key): _plain(config, str(key)) for key in config if key not in NO_PART},
            OmegaConf.to_container(sweeper) if OmegaConf.is_config(sweeper) else None,
            str(OmegaConf.select(config, "hydra.runtime.choices.hydra/launcher") or ""),
        )


def _plain(config: DictConfig, key: str) -> Any:
    """As it is written where jobs alone can resolve it."""
    if OmegaConf.is_missing(config, key):
        return None
    node = config._get_node(key)
    if not OmegaConf.is_config(node):
        return _resolved(config, key)
    try:
        return OmegaConf.to_container(node, resolve=True, enum_to_str=True)
    except (OmegaConfBaseException, PipelineError):
        return OmegaConf.to_container(node, enum_to_str=True)


def _resolved(config: DictConfig, key: str) -> Any:
    try:
        return config[key]
    except (OmegaConfBaseException, PipelineError):
        return str(config._get_node(key))


def about_sweep(folder: Path, asked: Asked, jobs: Sequence[Listed], content: str) -> About:
    """Its id is that of what it was asked for, wherever its folder is: the same command goes on as the same run."""
    swept = _swept(jobs)
    told = {"overrides": list(asked.overrides), "folder": str(folder), "swept": swept, "launcher": asked.launcher}
    tags = [tag for key in TAGGED for tag in _tags(asked, swept, key)]
    return About(
        id=sweep_id(asked),
        content=content,
        name=folder.name,
        group=folder.name,
        kind="sweep",
        tags=tuple(dict.fromkeys(["sweep", *tags])),
        config={
            **_shared(asked.config, swept),
            **told,
            "sweeper": asked.sweeper,
            "jobs": [_text(job, swept) for job in jobs],
        },
        folder=folder,
        cache=asked.cache,
    )


def sweep_id(asked: Asked) -> str:
    """Of the command line in any order, the configuration that its jobs share, and what draws them."""
    overrides = sorted(each for each in asked.overrides if _parts(each)[0].partition(".")[0] not in NO_PART)
    sweeper = {key: value for key, value in (asked.sweeper or {}).items() if key not in ("n_trials", "n_jobs")}
    text = json.dumps(_with_texts([overrides, asked.config, sweeper]), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _with_texts(value: Any) -> Any:
    """With texts as keys, which can be sorted."""
    if isinstance(value, dict):
        return {str(key): _with_texts(each) for key, each in value.items()}
    return [_with_texts(each) for each in value] if isinstance(value, list) else value


def _text(job: Listed, swept: dict[str, list[str]]) -> str:
    """What it differs in."""
    return " ".join(each for each in job.overrides if _parts(each)[0] in swept) or " ".join(job.overrides)


def _parts(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+").partition("=")
    return key, value


def _swept(jobs: Sequence[Listed]) -> dict[str, list[str]]:
    """Keys of which the listed jobs have several values."""
    found: dict[str, dict[str, None]] = {}
    for job in jobs:
        for override in job.overrides:
            key, value = _parts(override)
            found.setdefault(key, {})[value] = None
    return {key: list(values) for key, values in found.items() if len(values) > 1}


def _shared(config: dict[str, Any], swept: dict[str, list[str]]) -> dict[str, Any]:
    """Without what differs between jobs."""
    found = {key: value for key, value in config.items() if key not in swept}
    for key in swept:
        parts, node = key.split("."), found
        for part in parts[:-1]:
            node[part] = inner = dict(node[part]) if isinstance(node.get(part), dict) else {}
            node = inner
        node.pop(parts[-1], None)
    return found


def _tags(asked: Asked, swept: dict[str, list[str]], key: str) -> list[str]:
    if key in swept:
        return swept[key][:MOST_TAGS]
    section = asked.config.get(key)
    name = section.get("name") if isinstance(section, dict) else None
    if name is None and isinstance(section, dict):  # a quantizer
        name = str(section.get("_target_", "")).rpartition(".")[2]
    return [str(name)] if name else []
