"""Denoiser inputs, cut per prompt, stored, and read in batches."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from segquant.files import write_tensors
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.runtime.reading import reading

_PLAIN = (str, int, float, bool, type(None))


@dataclass
class Sample:
    """The denoiser's inputs for one prompt at one step (two rows with guidance).

    Attributes:
        call: which of the step's calls, from 0; true guidance makes two.
        rows: this prompt's rows by flattened name "a/b", in lists "a/[0]".
        shared: tensors without a batch axis.
        constants: everything else, JSON types only.
    """

    prompt: int
    step: int
    rows: dict[str, torch.Tensor]
    shared: dict[str, torch.Tensor]
    constants: dict[str, Any]
    call: int = 0


def _flatten(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flatten(item, f"{name}/{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _flatten(item, f"{name}/[{index}]")
    elif isinstance(value, (torch.Tensor, *_PLAIN)):
        yield name, value
    else:
        raise PipelineError(f"the denoiser's input {name!r} is a {type(value).__name__}, which cannot be stored")


def _unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split("/")
        target = nested
        for parent in parents:
            target = target.setdefault(parent, {})
        target[leaf] = value
    return {name: _relist(value) for name, value in nested.items()}


def _relist(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    items = {key: _relist(item) for key, item in value.items()}
    return list(items.values()) if all(key.startswith("[") for key in items) else items


def flat_tensors(inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Tensors by flattened name, detached, on the CPU.

    Raises:
        PipelineError: an input that cannot be stored.
    """
    flat = _flatten(inputs, "")
    return {name: value.detach().cpu() for name, value in flat if isinstance(value, torch.Tensor)}


def cut_sample(
    inputs: Mapping[str, Any], item: int, batch: int, prompt: int, step: int, shared: Collection[str] = ()
) -> Sample:
    """One prompt's rows out of a denoiser call on `batch` prompts.

    Guidance stacks prompts, so an item's rows lie `batch` apart. The latents (first tensor with several axes) give the
    number of rows; a 0-dimensional `timestep` is spread over them. `shared` inputs have no rows, even if as long.

    Raises:
        PipelineError: the rows are no multiple of `batch`, or an input cannot be stored.
    """
    tensors = flat_tensors(inputs)
    total = next(value.shape[0] for value in tensors.values() if value.ndim > 1)
    if total % batch:
        raise PipelineError(f"the denoiser was called on {total} rows for {batch} prompts; set model.batch_size=1")
    if "timestep" in tensors and tensors["timestep"].ndim == 0:
        tensors["timestep"] = tensors["timestep"].expand(total)
    rows, whole = {}, {}
    for name, value in tensors.items():
        if value.ndim and value.shape[0] == total and name not in shared:
            rows[name] = value[item::batch].clone()
        else:
            whole[name] = value.clone()
    constants = {name: value for name, value in _flatten(inputs, "") if not isinstance(value, torch.Tensor)}
    return Sample(prompt, step, rows, whole, constants)


def packed(samples: Sequence[Sample]) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Tensors by name, repeated ones once, and JSON; `unpacked` is the inverse."""
    tensors: dict[str, torch.Tensor] = {}
    last: dict[str, str] = {}
    places: set[int] = set()  # in memory: unpacked samples share it, and files take a tensor of its own for each name
    records = []
    for index, sample in enumerate(samples):
        record: dict[str, Any] = {"prompt": sample.prompt, "step": sample.step, "call": sample.call}
        record["constants"] = sample.constants
        for kind, group in (("rows", sample.rows), ("shared", sample.shared)):
            record[kind] = {}
            for name, value in group.items():
                if name not in last or not torch.equal(tensors[last[name]], value):
                    last[name] = f"{index:06d}/{name}"
                    place = value.untyped_storage().data_ptr()
                    tensors[last[name]] = value.contiguous() if place not in places else value.contiguous().clone()
                    places.add(place)
                record[kind][name] = last[name]
        records.append(record)
    return tensors, records


def unpacked(tensors: Mapping[str, torch.Tensor], records: Sequence[Mapping[str, Any]]) -> list[Sample]:
    return [
        Sample(
            record["prompt"],
            record["step"],
            {name: tensors[key] for name, key in record["rows"].items()},
            {name: tensors[key] for name, key in record["shared"].items()},
            record["constants"],
            record["call"],
        )
        for record in records
    ]


def save_samples(samples: Sequence[Sample], folder: Path) -> None:
    """Write inputs.safetensors and inputs.json."""
    folder.mkdir(parents=True)
    tensors, records = packed(samples)
    write_tensors(folder / "inputs.safetensors", tensors)
    (folder / "inputs.json").write_text(json.dumps({"schema": 1, "samples": records}), encoding="utf-8")


def load_samples(folder: Path) -> list[Sample]:
    """Inverse of `save_samples`.

    Raises:
        PipelineError: the files are damaged.
    """
    with reading("the calibration inputs", folder):
        records = json.loads((folder / "inputs.json").read_text(encoding="utf-8"))["samples"]
        with safe_open(folder / "inputs.safetensors", framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no mapping
        return unpacked(tensors, records)


def _fit_together(first: Sample, other: Sample) -> bool:
    return (
        first.constants == other.constants
        and first.rows.keys() == other.rows.keys()
        and first.shared.keys() == other.shared.keys()
        and all(first.rows[name].shape[1:] == other.rows[name].shape[1:] for name in first.rows)
        and all(torch.equal(first.shared[name], other.shared[name]) for name in first.shared)
    )


class Batches:
    """Keyword dicts of the denoiser's forward, `size` samples each; re-iterable."""

    def __init__(self, samples: Sequence[Sample], size: int, device: str = "cpu") -> None:
        self.device = device
        self.groups: list[list[Sample]] = []
        for sample in samples:
            group = self.groups[-1] if self.groups else None
            if group is not None and len(group) < size and _fit_together(group[0], sample):
                group.append(sample)
            else:
                self.groups.append([sample])

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def sizes(self) -> list[int]:
        return [len(group) for group in self.groups]

    @property
    def origins(self) -> list[tuple[int, ...]]:
        """The prompts of every batch, for `segquant.observers.observe`."""
        return [tuple(sorted({sample.prompt for sample in group})) for group in self.groups]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for group in self.groups:
            flat: dict[str, Any] = dict(group[0].constants)
            for name in group[0].rows:
                flat[name] = torch.cat([sample.rows[name] for sample in group]).to(self.device)
            for name, value in group[0].shared.items():
                flat[name] = value.to(self.device)
            yield _unflatten(flat)
