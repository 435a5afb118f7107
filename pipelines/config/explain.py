"""Errors of Hydra, hub and memory in one sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from segquant_bench.hints import nearest
from segquant_bench.pipelines.config.arguments import open_key, quotes_hint
from segquant_bench.pipelines.config.precision import arguments_of
from segquant_bench.pipelines.config.sections import ModelConfig, PartConfig
from segquant_bench.pipelines.errors import PipelineError, causes, is_memory, one_line, unknown_key

PARTS = "model.parts."
QUOTES = "'\""
_MERGING = "Error merging override "
_ASKED = re.compile(r"(?:[Tt]ried to|Unable to) allocate (\d[\d.]*) ?(bytes|[KMGTP]?i?B)")
_FREE = re.compile(r"of which (\d[\d.]* ?[KMGTP]?i?B) is free")


def explain(error: BaseException) -> str:
    """The sentence for an error of composing the configuration."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _unknown_option(error)
    if isinstance(error, OverrideParseException):
        reason = error.message.partition("\n")[0]
        advice = quotes_hint(str(error.override)) or "put quotes around special characters"
        return one_line(f"{error.override!r} cannot be read as KEY=VALUE ({reason}); {advice}")
    if (ours := next((each for each in causes(error) if isinstance(each, PipelineError)), None)) is not None:
        return one_line(ours)  # raised while a value was looked up
    missing = next((each for each in causes(error) if isinstance(each, MissingMandatoryValue)), None)
    if missing is not None and missing.full_key:
        return f"no value for {missing.full_key}; add {missing.full_key}=VALUE to the command line"
    cause = error.__cause__ if isinstance(error, ConfigCompositionException) else error
    if isinstance(cause, ConfigAttributeError | ConfigKeyError):
        return _unknown_key(cause)
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        return _of_part(error) or _wrong_value(cause, _given(error))
    return one_line(cause or error)


def _given(error: BaseException) -> tuple[str, str]:
    """Key and value of the argument that does not go with the rest, as Hydra's message has them; else empty."""
    key, _, value = one_line(error).removeprefix(_MERGING).partition("=")
    return (key.lstrip("+"), value) if str(error).startswith(_MERGING) else ("", "")


def _of_part(error: BaseException) -> str:
    """Of a component from elsewhere that is not there yet, which takes all of its keys at once; else empty."""
    key, value = _given(error)
    names = key.removeprefix(PARTS).split(".")
    if not key.startswith(PARTS):
        return ""
    if names[1:] and names[1] not in {item.name for item in fields(PartConfig)}:
        return unknown_key(key, [item.name for item in fields(PartConfig)])
    place = f"{names[1]}: {value}" if names[1:] and names[1] != "kind" else "path: DIRECTORY"
    kind = value if names[1:] == ["kind"] else "CLASS"
    whole = value if not names[1:] and value.startswith("{") else f"{{kind: {kind}, {place}}}"
    return (
        f"{key} is of a part that the model has not: model.parts takes one whole; write 'model.parts={{{names[0]}: "
        f"{whole}}}', where kind is the name of its class in diffusers"
    )


def _wrong_value(error: OmegaConfBaseException, given: tuple[str, str]) -> str:
    key, told = str(error.full_key), one_line(str(error.msg).partition("\n")[0])
    if told.endswith("is not a ListConfig, list or tuple."):
        value = given[1] if given[0] == key and given[1] else "VALUE"
        return f"{key} takes a list; write '{key}=[{value.strip(QUOTES)}]'"
    if told.endswith("is not Optional"):
        return f"{key} cannot be null; leave {key}=null out, or give it a value"
    if told == "Cannot merge DictConfig with ListConfig":
        return f"{key} got a list for settings or the other way round; write '{key}={{KEY: VALUE}}' or '{key}=[VALUE]'"
    if "is not a subclass of" in told and key.endswith("]"):
        listed = key.rpartition("[")[0]
        return f"{key} is none of the values that {listed} holds; write '{listed}=[NAME,NAME]'"
    if "is not a subclass of" in told:
        return f"{key} takes keys of its own and no value; set {key}.KEY=VALUE, or '{key}={{KEY: VALUE}}'"
    if told.endswith("does not support deletion"):
        return f"{key} cannot be taken away; change its value"
    return f"{key}: {told}; correct its value"


ELSEWHERE = {
    ("run", "tensorrt"): "nothing here runs TensorRT; quantize with quantizer.deploy=tensorrt, and write its file with "
    "`segquant-export DIR format=onnx profile=tensorrt`",
}
"""What is done otherwise, by group and option."""


def _group_and_option(file: str) -> tuple[str, str]:
    ours, _, rest = file.partition("/")
    if ours != "hydra":
        return (ours, rest) if "/" in file else ("", file)
    inner, _, option = rest.partition("/")
    return f"{ours}/{inner}", option


def _unknown_option(error: MissingConfigException) -> str:
    # what follows a group's name is what was given, also where that has a "/" of its own
    group, option = _group_and_option(str(error.missing_cfg_file))
    if not error.options:
        return f"there is no configuration {error.missing_cfg_file!r}; look into conf/"
    if (group, option) in ELSEWHERE:
        return f"{group}={option} is no option of the group {group}: {ELSEWHERE[group, option]}"
    if group == "precision" and (arguments := arguments_of(option)):
        return (
            f"precision={option} is no option of the group precision, though it names a format of overrides and of "
            f"Python; write {' '.join(arguments)}"
        )
    return (
        f"{group}={option} is no option of the group {group}; {nearest(option, error.options)} (options of your own "
        "need --config-dir DIRECTORY)"
    )


def _unknown_key(error: OmegaConfBaseException) -> str:
    parent, key = error.parent_node, str(error.full_key)
    if (outer := open_key(key)) is not None:
        return f"{outer} has no key {key.removeprefix(outer)[1:]!r} yet; write ++{key}=VALUE to add it"
    known = [str(name) for name in parent] if isinstance(parent, DictConfig) else []
    return _not_of_this_method(parent, key) or unknown_key(key, known)


def _not_of_this_method(parent: Any, key: str) -> str:
    """Why a quantizer has no setting that others have; empty if none has."""
    section, _, setting = key.rpartition(".")
    if section != "quantizer" or not isinstance(parent, DictConfig):
        return ""
    from segquant.presets.settings import REASONS, why_not  # torch: not for `segquant --help`

    name = str(parent.get("name") or str(parent.get("_target_")).rpartition(".")[2])
    return f"there is no key {key!r}: {why_not(name, setting, ())}" if setting in REASONS else ""


def below_null(error: BaseException) -> str | None:
    """The sentence for a key below one that is null, which OmegaConf has an assertion for; else None."""
    if not isinstance(error, AssertionError) or "Unexpected type for root: NoneType" not in str(error):
        return None
    return "a key was set below one that is null; give both at once, for example 'precision.input={dtype: int8}'"


def not_had(config: ModelConfig | PartConfig, key: str, error: Exception) -> str:
    """Why a repository cannot be had."""
    # Put off: only a failed download needs the hub's errors.
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    repo, seen = config.repo, list(causes(error))
    own = f"set {key}.path=DIRECTORY"
    fetch = f"run `hf download {repo}` where there is a network, or {own}"
    if any(isinstance(each, GatedRepoError) for each in seen):
        return (
            f"{repo} is gated: accept its licence on https://huggingface.co/{repo}, log in with `hf auth login`, or "
            f"{own} of a copy"
        )
    if any(isinstance(each, RepositoryNotFoundError) for each in seen):
        return f"the hub has no repository {repo!r} that you may read; correct {key}.repo, or {fetch}"
    if any(isinstance(each, RevisionNotFoundError) for each in seen):
        return f"{repo} has no revision {config.revision!r}; correct {key}.revision, or {own}"
    if "trust_remote_code" in str(error):
        return (
            f"{repo} wants to run code of its own, which is never done; {own} of a model of diffusers' own classes, or "
            "set model.pipeline to a class of a package of yours"
        )
    if "`safetensors` weights" in str(error):
        return f"{repo} has no safetensors file for one of its components{pickles_only(['.bin files'], key)}"
    return f"{key} needs {repo}, which is neither cached here nor reachable; {fetch}"


def pickles_only(files: Sequence[str], key: str) -> str:
    """How to get safetensors instead; empty without pickles."""
    if not files:
        return ""
    return (
        f", only {', '.join(files)}, which are pickles and never loaded; convert them to safetensors, or set "
        f"{key}.revision to one of the repository's that has safetensors (often refs/pr/1)"
    )


def no_room(config: ModelConfig, sizes: Mapping[str, int], free: int, place: str, denoiser: str) -> str:
    """The sentence for components (bytes by name) that exceed the free bytes."""
    listed = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in sorted(sizes.items(), key=lambda each: -each[1]))
    texts = config.embeddings != "cached" and any("text_encoder" in name for name in sizes)
    options = ["model.embeddings=cached"] if texts else []
    if denoiser in sizes:
        advice = " and ".join([*options, "model.offload=blocks"])
    else:
        options += ["model.offload=components"] if config.offload == "none" and place != "cpu" else []
        options += ["model.dtype=bfloat16"] if config.dtype == "float32" else []
        options += ["model.device=cpu"] if place != "cpu" else []
        advice = " or ".join(options or ["a machine with more memory"])
    return (
        f"model {config.name} needs {sum(sizes.values()) / 1e9:.1f} GB in {config.dtype} ({listed}), and "
        f"{free / 1e9:.1f} GB are free on {place}; use {advice}"
    )


def memory_message(error: BaseException) -> str | None:
    """The sentence for lack of memory; else None."""
    found = next((each for each in causes(error) if is_memory(each)), None)
    if found is None:
        return None
    asked, free = _ASKED.search(str(found)), _FREE.search(str(found))
    told = "more was asked for than is free" if asked is None else f"{_amount(*asked.groups())} were asked for"
    left = "" if free is None else f" and {free[1]} are free"
    return (
        f"out of memory: {told}{left}; use model.offload=components (what does not run waits in main memory), "
        "model.offload=blocks (the denoiser waits on disk), or a smaller model.batch_size"
    )


def _amount(number: str, unit: str) -> str:
    return f"{int(number) / 1e9:.1f} GB" if unit == "bytes" else f"{number} {unit}"
