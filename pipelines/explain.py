"""Hydra's and OmegaConf's errors in one sentence, with the names that were probably meant."""

from __future__ import annotations

from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from pipelines.errors import nearest, one_line


def explain(error: BaseException) -> str:
    """One sentence for an error of composing the configuration."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _unknown_option(error)
    if isinstance(error, OverrideParseException):
        reason = error.message.partition("\n")[0]
        return f"{error.override!r} cannot be read as KEY=VALUE ({reason}); put quotes around special characters"
    cause = error.__cause__ if isinstance(error, ConfigCompositionException) else error
    if isinstance(cause, ConfigAttributeError | ConfigKeyError):
        return _unknown_key(cause)
    if isinstance(cause, ValidationError):
        return f"{cause.full_key}: {one_line(str(cause.msg).partition(chr(10))[0])}; correct its value"
    return one_line(cause or error)


def _unknown_option(error: MissingConfigException) -> str:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    if not error.options:
        return f"there is no configuration {error.missing_cfg_file!r}; look into conf/"
    return f"{group}={option} is no option of the group {group}; {nearest(option, error.options)}"


def _unknown_key(error: OmegaConfBaseException) -> str:
    parent, key = error.parent_node, str(error.key)
    known = [str(name) for name in parent] if isinstance(parent, DictConfig) else []
    return f"there is no key {error.full_key!r}; {nearest(key, known)}"
