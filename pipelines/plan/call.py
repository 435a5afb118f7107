from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from segquant_bench.pipelines.architectures.inputs import Call
from segquant_bench.pipelines.errors import PipelineError

_KEYS: tuple[Literal["height", "width", "max_sequence_length"], ...] = ("height", "width", "max_sequence_length")
_ENDLESS = 10**6
"""transformers writes 10^30 for a tokenizer without a length."""


def call_of(model: DictConfig) -> Call:
    """From `model.call`, tokenizer and VAE, as far as local files say."""
    found = Call()
    given = {} if OmegaConf.is_missing(model, "call") else model.call
    for key in _KEYS:
        if key in given and not OmegaConf.is_missing(given, key) and given[key] is not None:
            found[key] = given[key]
    length = _values(model, "tokenizer/tokenizer_config.json").get("model_max_length")
    if isinstance(length, int) and length < _ENDLESS:
        found["tokenizer_length"] = length
    vae = _values(model, "vae/config.json")
    blocks = vae.get("block_out_channels") or vae.get("encoder_block_out_channels")
    if isinstance(blocks, list):
        found["vae_scale"] = 2 ** (len(blocks) - 1)
    return found


def _values(model: DictConfig, name: str) -> dict[str, Any]:
    if model.path is not None:
        file: Path | None = Path(model.path) / name
    else:
        file = None if model.repo is None else cached(model.repo, name, model.revision)
    if file is None or not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise PipelineError(f"{file} is not readable JSON; fetch the model again") from error
    return values if isinstance(values, dict) else {}


def cached(repo: str, file: str, revision: str | None) -> Path | None:
    """A file of a repository in the local hub cache.

    Raises:
        PipelineError: no repository can have that name.
    """
    # Put off: only what is not on this machine needs the hub.
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repo, file, revision=revision)
    except HFValidationError as error:
        raise PipelineError(
            f"{repo!r} cannot be a repository of the hub; give OWNER/NAME, or DIRECTORY as path"
        ) from error
    return Path(found) if isinstance(found, str) else None
