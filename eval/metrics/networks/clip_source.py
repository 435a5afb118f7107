"""Which weights a CLIP scorer is read from, and whether they belong to its architecture.

Weights do not say which activation they were trained with: with another one they load without a word, and score wrong.
So it is told by open_clip's record of a tag of weights, or by a configuration beside them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.metrics.backends import Backends
from segquant_bench.hints import nearest

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
QUICK = "-quickgelu"
_SIZES = {
    "": ("embed_dim",),
    "vision_cfg": ("image_size", "layers", "width", "patch_size"),
    "text_cfg": ("context_length", "vocab_size", "width", "heads", "layers"),
}
"""By which architectures are told apart."""
_PREPROCESS = ("mean", "std", "interpolation", "resize_mode")


@dataclass(frozen=True)
class Source:
    """Arguments of `open_clip.create_model_and_transforms`.

    Attributes:
        identifier: an architecture, or "local-dir:FOLDER".
        pretrained: a tag or a file; None with a folder.
        preprocess: how a file's weights want their pictures.
    """

    identifier: str
    pretrained: str | None
    preprocess: Mapping[str, Any] = field(default_factory=dict)


def find_source(backends: Backends) -> Source:
    """Nothing is loaded.

    Raises:
        EvalError: no such weights, or they were trained with another activation than the architecture computes.
    """
    name, where = backends.clip, backends.clip_path
    if where is not None and not Path(where).is_file():
        return _of_folder(name, Path(where))
    architecture = _architecture(name)
    if architecture is None:
        raise EvalError(
            f"CLIP scorer {name!r} is no open_clip architecture; set clip_path to the folder "
            f"that holds its {CONFIG_FILE} and {WEIGHTS_FILE}"
        )
    if where is None:
        tag = backends.clip_pretrained
        _check_activation(name, _is_quick(architecture), _tag(name, tag), f"weights {tag!r}")
        return Source(name, tag)
    return _of_file(name, _is_quick(architecture), Path(where), backends.clip_pretrained)


def _of_folder(name: str, folder: Path) -> Source:
    for needed in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / needed).is_file():
            raise EvalError(
                f"CLIP scorer {name!r} was asked for, but {folder / needed} does not exist; set clip_path to "
                f"a folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
            )
    config = _read_config(folder / CONFIG_FILE)
    architecture = _architecture(name)
    if architecture is not None:
        _check_activation(name, _is_quick(architecture), config["model_cfg"], f"the model of {folder}")
        _check_sizes(name, architecture, config["model_cfg"], folder)
    return Source(f"local-dir:{folder}", None)


def _of_file(name: str, quick: bool, path: Path, tag: str) -> Source:
    _check_readable(path)
    if (path.parent / CONFIG_FILE).is_file():
        config = _read_config(path.parent / CONFIG_FILE)
        _check_activation(name, quick, config["model_cfg"], f"{path}, by the {CONFIG_FILE} beside it,")
        return Source(name, str(path), _preprocess(config.get("preprocess_cfg") or {}))
    known = _known_tag(name, path)
    if known is None and tag == "openai":  # the default, so nobody said it
        raise EvalError(
            f"{path} does not say which activation and which pictures its weights were trained with; keep its "
            f"{CONFIG_FILE} beside it, or set clip_pretrained to open_clip's tag of these weights"
        )
    record = _tag(name, known or tag)
    _check_activation(name, quick, record, f"{path} ({known or tag})")
    return Source(name, str(path), _preprocess(record))


def _preprocess(record: Mapping[str, Any]) -> dict[str, Any]:
    return {f"image_{key}": record[key] for key in _PREPROCESS if record.get(key) is not None}


def _is_quick(config: Mapping[str, Any]) -> bool:
    return bool(config.get("quick_gelu", False))


def _check_activation(name: str, quick: bool, trained: Mapping[str, Any], what: str) -> None:
    if quick == _is_quick(trained):
        return
    words = {True: "QuickGELU", False: "GELU"}
    other = name.removesuffix(QUICK) if quick else name + QUICK
    advice = f"set clip={other}" if _architecture(other) is not None else "choose an architecture with it"
    raise EvalError(
        f"CLIP scorer {name!r} computes {words[quick]}, and {what} was trained with {words[not quick]}; {advice}"
    )


def _check_sizes(name: str, wanted: Mapping[str, Any], found: Mapping[str, Any], folder: Path) -> None:
    """Refuse the model of a folder that bears the name of another one: scores would be told as that one's."""
    for part, keys in _SIZES.items():
        ours, theirs = (config.get(part, {}) if part else config for config in (wanted, found))
        if not isinstance(theirs, Mapping):
            raise EvalError(f"{folder / CONFIG_FILE} is no open_clip config: its {part} must be a mapping")
        for key in keys:
            if ours.get(key) != theirs.get(key, ours.get(key)):
                raise EvalError(
                    f"CLIP scorer {name!r} was asked for, and the model of {folder} is another: its "
                    f"{f'{part}.' * bool(part)}{key} is {theirs[key]!r} instead of {ours.get(key)!r}; correct clip or "
                    "clip_path"
                )


def _architecture(name: str) -> dict[str, Any] | None:
    """open_clip's configuration of an architecture; None if it has none. Without importing it, which takes seconds."""
    found = importlib.util.find_spec("open_clip")
    if found is None or found.origin is None or not re.fullmatch(r"[\w.-]+", name):
        return None
    path = Path(found.origin).parent / "model_configs" / f"{name}.json"
    config: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return config


def _tag(name: str, tag: str) -> dict[str, Any]:
    """open_clip's record of a tag of weights."""
    from open_clip import pretrained  # put off: seconds

    base = name.removesuffix(QUICK)  # open_clip lists weights trained with GELU under this name alone
    found: dict[str, Any] = pretrained.get_pretrained_cfg(name, tag) or pretrained.get_pretrained_cfg(base, tag)
    if not found:
        known = sorted(
            {*pretrained.list_pretrained_tags_by_model(base), *pretrained.list_pretrained_tags_by_model(name)}
        )
        raise EvalError(f"open_clip knows no weights {tag!r} of {name} (clip_pretrained); {nearest(tag, known)}")
    return found


def _known_tag(name: str, path: Path) -> str | None:
    """The tag whose published file this is, by the hash in its address."""
    from open_clip import pretrained  # put off: seconds

    digest, tags = "", [str(tag) for tag in pretrained.list_pretrained_tags_by_model(name.removesuffix(QUICK))]
    for tag in tags:
        url = pretrained.get_pretrained_url(name.removesuffix(QUICK), tag)
        published = re.search(r"-([0-9a-f]{8})\.pt$", url)
        if published is None:
            continue
        if not digest:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest.startswith(published[1]):
            return tag
    return None


def _check_readable(path: Path) -> None:
    if path.suffix != ".safetensors" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any("/code/" in name for name in archive.namelist()):
                raise EvalError(
                    f"{path} is a program of TorchScript, which open_clip does not read as weights; set "
                    f"clip_path=null (clip_pretrained=openai gets them), or to a folder with {CONFIG_FILE}"
                )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        config["model_cfg"].get("quick_gelu")
        dict(config.get("preprocess_cfg") or {})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EvalError(f"{path} is no open_clip config: it must be JSON with model_cfg") from error
    return config
