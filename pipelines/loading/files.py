"""A model's files."""

from __future__ import annotations

import json
import logging
import re
import struct
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from segquant_bench.hidden import visible
from segquant_bench.pipelines.config.explain import no_room, not_had, pickles_only
from segquant_bench.pipelines.config.sections import ModelConfig, PartConfig
from segquant_bench.pipelines.errors import PipelineError, one_line
from segquant_bench.pipelines.loading.settings import check_settings
from segquant_bench.pipelines.runtime.digests import tree_digest
from segquant_bench.pipelines.runtime.paths import FAMILIES, ZOO, ZOO_ADVICE

log = logging.getLogger(__name__)

READ = (".json", ".safetensors", ".txt", ".model")
"""Files that a model is read from."""
_FILE = re.compile(r"[\w. -]{1,200}\.safetensors")
_LONGEST = 100_000_000
"""Bytes of a header, as the format's own readers have it."""
_WEIGHTLESS = ("scheduler", "tokenizer", "feature_extractor", "processor")


def resolve_directory(config: ModelConfig) -> Path:
    """The pipeline's local directory, downloaded if only `repo` is given.

    Raises:
        PipelineError: no directory, pipeline or network; files missing or truncated.
    """
    directory = Path(config.path) if config.path is not None else _download(config, "model")
    check_directory(directory, config.variant)
    return directory


def resolve_part(name: str, part: PartConfig) -> Path:
    """The directory of a component from elsewhere, in the same way.

    Raises:
        PipelineError: as `resolve_directory`.
    """
    directory = Path(part.path) if part.path is not None else _download(part, f"model.parts.{name}")
    check_links(directory)
    if not (directory / "config.json").is_file():
        help_text = _again(directory, f"set model.parts.{name}.path to the folder that has")
        raise PipelineError(f"{directory} is no {part.kind}, it has no config.json; {help_text}")
    check_settings(directory)
    _check_weights(directory, part.kind, part.variant, f"model.parts.{name}")
    return directory


def _download(config: ModelConfig | PartConfig, key: str) -> Path:
    try:
        return _from_hub(config)
    except (OSError, ValueError, RuntimeError) as error:
        raise PipelineError(not_had(config, key, error)) from error


def _from_hub(config: ModelConfig | PartConfig) -> Path:
    if isinstance(config, PartConfig):
        # Put off: only what is not on this machine needs the hub.
        from huggingface_hub import snapshot_download

        patterns = ["*.json", "*.safetensors"]
        return Path(snapshot_download(str(config.repo), revision=config.revision, allow_patterns=patterns))
    from diffusers import DiffusionPipeline

    quieten()
    found = DiffusionPipeline.download(
        config.repo, revision=config.revision, variant=config.variant, use_safetensors=True
    )
    return Path(found)


def quieten() -> None:
    """No warnings or progress bars of diffusers and transformers."""
    from diffusers.utils import logging as diffusers_logging  # put off: slow, and a finished run needs none of it
    from transformers.utils import logging as transformers_logging

    for module in (diffusers_logging, transformers_logging):
        module.set_verbosity_error()
        module.disable_progress_bar()


def _again(directory: Path, otherwise: str = "fetch the model again") -> str:
    directory = directory.resolve()
    if directory == ZOO or not directory.is_relative_to(ZOO):
        return otherwise
    if not ZOO.is_dir():
        return f"the package does not contain it; {ZOO_ADVICE}"

    folder = directory.relative_to(ZOO).parts[0]
    family = next((family for family, name in FAMILIES.items() if name == folder), None)
    return otherwise if family is None else f"`python -m segquant_bench.pipelines.zoo.train --family {family}` makes it"


def read_index(directory: Path) -> dict[str, Any]:
    help_text = "set model.path to the folder that holds a diffusers pipeline's model_index.json"
    if not directory.is_dir():
        raise PipelineError(f"model directory {directory} does not exist; {_again(directory, help_text)}")
    file = directory / "model_index.json"
    if not file.is_file():
        raise PipelineError(f"{directory} is no diffusers pipeline, it has no model_index.json; {help_text}")
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise PipelineError(f"{file} is not readable JSON ({one_line(error)}); fetch the model again") from error
    if not isinstance(index, dict) or "_class_name" not in index:
        raise PipelineError(f"{file} names no pipeline class (_class_name); {help_text}")
    for name, entry in index.items():
        if isinstance(entry, list) and len(entry) == 2 and not name.isidentifier():
            raise PipelineError(f"{file} has a component {name!r}, which is no name of one; fetch the model again")
    return index


def components(index: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Every component's name and class; None for an empty one."""
    for name, entry in index.items():
        if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str | None):
            yield name, entry[1]


def check_directory(directory: Path, variant: str | None = None) -> None:
    """Refuse missing components or parts of one, and settings that no model has."""
    index = read_index(directory)
    check_links(directory)
    for name, class_name in components(index):
        if class_name is None:
            continue
        folder = directory / name
        if not folder.is_dir():
            raise PipelineError(f"{directory} lacks its component {name!r} ({class_name}); {_again(directory)}")
        check_settings(folder, class_name)
        if any(word in name for word in _WEIGHTLESS):
            continue
        _check_weights(folder, class_name, variant)


def check_links(directory: Path) -> None:
    """Refuse files that are links to nowhere, as in a copy of links alone."""
    for path in visible(directory.rglob("*"), directory):
        if path.suffix in READ and path.is_symlink() and not path.exists():
            raise PipelineError(
                f"{path} is a link to {path.readlink()}, which is not there; copy the model with what its links lead "
                "to (cp -rL), or fetch it again"
            )


def _check_weights(folder: Path, class_name: str, variant: str | None, key: str = "model") -> None:
    files = list(weight_files(folder, variant))
    if not files:
        told = pickles_only([file.name for file in visible(folder.glob("*.bin"), folder)], key)
        raise PipelineError(f"{folder} has no safetensors file for {class_name}{told or f'; {_again(folder)}'}")
    for file in files:
        check_safetensors(file)


def weight_files(folder: Path, variant: str | None) -> list[Path]:
    """A component's safetensors, of the variant if any; shards as indexed."""
    for middle in (f".{variant}", "") if variant else ("",):
        indexes = visible(folder.glob(f"*.safetensors.index{middle}.json"), folder)
        if indexes:
            return [folder / name for name in sorted({name for index in indexes for name in _shards(index)})]
        files = [file for file in visible(folder.glob("*.safetensors"), folder) if _middle(file) == middle]
        if files:
            return files
    return []


def _shards(index: Path) -> set[str]:
    """The files that an index names, which lie beside it."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise PipelineError(
            f"{index} is no index of weights ({type(error).__name__}: {one_line(error)}); fetch the model again"
        ) from error
    wrong = [name for name in names if not isinstance(name, str) or not _FILE.fullmatch(name)]
    if wrong:
        told = one_line(repr(wrong[0])[:80])
        raise PipelineError(f"{index} names {told}, which is no file beside it; fetch the model again")
    return names


def _middle(file: Path) -> str:
    """The variant in a file's name: ".fp16" of model.fp16.safetensors."""
    return "".join(file.stem.partition(".")[1:])


def check_safetensors(file: Path) -> None:
    """Refuse a missing or truncated file, by its header."""
    start, header = _header(file)
    expected = start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    size = file.stat().st_size
    if size != expected:
        raise PipelineError(f"{file} is truncated, it has {size} of {expected} bytes; fetch the model again")


def _header(file: Path) -> tuple[int, dict[str, Any]]:
    """Where the data begins; dtype, shape and place by tensor name."""
    if not file.is_file():
        raise PipelineError(f"{file} is missing; fetch the model again")
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(file.stat().st_size, _LONGEST):
                raise ValueError("header longer than the file")
            header = json.loads(stream.read(length))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        if not all(_are_counts(entry["shape"]) and _are_counts(entry["data_offsets"], 2) for entry in tensors.values()):
            raise ValueError("an entry without its place")
    except (struct.error, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise PipelineError(
            f"{file} is no whole safetensors file, its header cannot be read; fetch the model again"
        ) from error
    return 8 + length, tensors


def _are_counts(values: Any, number: int | None = None) -> bool:
    """Whether it is a list of sizes, or of so many."""
    counts = isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)
    return counts and (number is None or len(values) == number)


def tensors_of(folder: Path, variant: str | None) -> dict[str, dict[str, Any]]:
    """dtype, shape and place of every tensor of a component, by its name."""
    return {name: entry for file in weight_files(folder, variant) for name, entry in _header(file)[1].items()}


def weight_bytes(folder: Path, variant: str | None, item: int) -> int:
    """A component's bytes at `item` bytes a value."""
    headers = (_header(file)[1] for file in weight_files(folder, variant))
    return sum(prod(entry["shape"]) * item for header in headers for entry in header.values())


def component_bytes(directory: Path, variant: str | None, item: int, without: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of every component with weights, except `without`."""
    named = (name for name, kind in components(read_index(directory)) if kind is not None and name not in without)
    found = {name: weight_bytes(directory / name, variant, item) for name in named if (directory / name).is_dir()}
    return {name: size for name, size in found.items() if size}


def check_room(config: ModelConfig, directory: Path, without: Mapping[str, Any], device: str, denoiser: str) -> None:
    """Refuse what cannot fit into memory, `without` some components."""
    import torch  # put off: slow, and a finished run needs none of it

    from segquant.modules.memory import free_bytes

    sizes = _loaded_bytes(config, directory, without, getattr(torch, config.dtype).itemsize)
    wanted = [(device, sizes)]
    if config.offload == "components" and device != "cpu":
        steps = {denoiser, *config.parts}  # they take turns at every step, so all of them stay
        alone = [{name: size} for name, size in sizes.items() if name not in steps]
        together = {name: size for name, size in sizes.items() if name in steps}
        wanted = [("cpu", sizes), *((device, each) for each in (together, *alone))]
    for place, there in wanted:
        needed, free = sum(there.values()), free_bytes(torch.device(place))
        if free is None:
            continue
        if needed > free:
            raise PipelineError(no_room(config, there, free, place, denoiser))
        if config.offload == "none" and denoiser in sizes and needed + sizes[denoiser] > free:
            log.warning(
                "model %s leaves %.1f GB free on %s, and quantizing its %s needs %.1f GB for a copy beside it, which "
                "model.offload=blocks does without",
                config.name, (free - needed) / 1e9, place, denoiser, sizes[denoiser] / 1e9,
            )  # fmt: skip


def _loaded_bytes(config: ModelConfig, directory: Path, without: Mapping[str, Any], item: int) -> dict[str, int]:
    sizes = component_bytes(directory, config.variant, item, {**without, **config.parts})
    for name, part in config.parts.items():
        if name not in without:
            sizes[name] = weight_bytes(resolve_part(name, part), part.variant, item)
    return sizes


def fingerprint(directory: Path) -> str:
    """Hash of weights and configurations."""
    return tree_digest(directory, READ)
