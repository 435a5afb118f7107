"""Checks of Weights & Biases before the work."""

from __future__ import annotations

import importlib.util
import logging
import netrc
import os
import re
import urllib.error
import urllib.request
from functools import lru_cache
from pathlib import Path
from typing import Any

from segquant_bench.pipelines.config.sections import LoggerConfig
from segquant_bench.pipelines.errors import PipelineError, one_line
from segquant_bench.pipelines.loggers.for_wandb.names import LONGEST, LONGEST_TAG, environment_tags

log = logging.getLogger(__name__)

HOST = "api.wandb.ai"
FORBIDDEN = "/\\#?%:"
"""Characters that no project has."""
ENTITY = re.compile(r"[A-Za-z0-9_-]{1,128}")
PATIENCE = 5.0
"""Seconds to wait for the host."""


def check_logger(config: LoggerConfig) -> Any:
    """The mode for W&B, "offline" where its host is out of reach.

    Raises:
        PipelineError: wandb is not installed, or does not take a name.
    """
    check_installed()
    if not 0 < len(config.project.strip()) <= LONGEST or any(character in FORBIDDEN for character in config.project):
        raise PipelineError(
            f"logger.project={config.project!r} is no name for W&B; use at most {LONGEST} characters, and none of "
            f"{' '.join(FORBIDDEN)}"
        )
    if config.entity is not None and ENTITY.fullmatch(config.entity) is None:
        raise PipelineError(
            f"logger.entity={config.entity!r} is no user or team of W&B, whose names have letters, digits, - and _; "
            "correct it, or leave it out for your own"
        )
    for key, tags in (("logger.tags", config.tags), ("WANDB_TAGS", environment_tags())):
        for tag in tags:
            if len(tag) > LONGEST_TAG or not tag:
                raise PipelineError(
                    f"{key} has a tag of {len(tag)} characters, W&B takes {LONGEST_TAG}; shorten it or leave it out"
                )
    mode = resolve_mode(config.mode)
    if mode != "online":
        return mode
    why = _out_of_reach(_base_url())
    if why:
        log.warning("W&B cannot be reached (%s): runs are logged offline, and `wandb sync` can send them later", why)
    return "offline" if why else mode


def check_installed() -> None:
    if importlib.util.find_spec("wandb") is None:
        raise PipelineError("logger=wandb needs the package wandb; run `pip install wandb` or set logger=none")


def resolve_mode(mode: str) -> Any:
    """ "auto" is $WANDB_MODE, else "online" with a key in environment or netrc, else "offline"."""
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    return "online" if os.environ.get("WANDB_API_KEY") or _has_login() else "offline"


def _has_login() -> bool:
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(path).authenticators(HOST) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _base_url() -> str:
    if os.environ.get("WANDB_BASE_URL"):
        return os.environ["WANDB_BASE_URL"]
    import wandb  # put off: most runs log nothing, or offline

    return str(wandb.Settings().base_url)


@lru_cache(maxsize=8)
def _out_of_reach(url: str) -> str:
    """Why a host does not answer, asked once a process; else empty."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE):
            return ""
    except urllib.error.HTTPError:
        return ""  # an answer
    except (OSError, ValueError) as error:
        return one_line(f"{url}: {getattr(error, 'reason', error)}")
