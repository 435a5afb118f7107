"""Prompt embeddings on disk; each prompt is encoded alone."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from segquant.files import write_tensors
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.runtime.pipeline_call import Stopped, told_by_sentence
from segquant_bench.pipelines.runtime.reading import reading

INDEX = "embeddings.json"
SHARD = 64
"""Prompts in a file."""
_PLACES = ("device",)
"""Arguments of `encode_prompt` that do not change what it returns."""


class _EncodedError(Stopped):
    """All text is encoded."""


def encode_prompts(pipeline: Any, prompts: Sequence[str], call: Mapping[str, Any], folder: Path) -> None:
    """Write what `encode_prompt` returns for each prompt.

    Args:
        pipeline: with text encoders; the rest needs no weights.
        folder: to make: safetensors of `SHARD` prompts, and embeddings.json.

    Raises:
        PipelineError: no `encode_prompt`, or one that cannot be stored.
    """
    if not hasattr(pipeline, "encode_prompt"):
        raise PipelineError(
            f"{type(pipeline).__name__} has no encode_prompt, so there are no prompt embeddings to compute beforehand; "
            "set model.embeddings=live"
        )
    folder.mkdir(parents=True, exist_ok=True)
    recorder = _Recorder(pipeline)
    files: dict[str, str] = {}
    for number, shard in enumerate(_shards(list(dict.fromkeys(prompts)))):
        tensors: dict[str, torch.Tensor] = {}
        for prompt in shard:
            _until_latents(pipeline, recorder, prompt, call)
            for name, tensor in recorder.take().items():
                if name not in files:
                    files[name], tensors[name] = f"{number:05d}.safetensors", tensor
        if tensors:
            write_tensors(folder / f"{number:05d}.safetensors", tensors)
    record = {"entries": recorder.entries, "files": files}
    (folder / INDEX).write_text(json.dumps(record) + "\n", encoding="utf-8")


def _shards(prompts: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(prompts), SHARD):
        yield prompts[start : start + SHARD]


def _until_latents(pipeline: Any, recorder: _Recorder, prompt: str, call: Mapping[str, Any]) -> None:
    stops = {name: _stop for name in dir(type(pipeline)) if name.startswith("prepare_")}
    vars(pipeline).update(stops, encode_prompt=recorder)
    try:
        with told_by_sentence(pipeline):
            pipeline(prompt=[prompt], output_type="latent", **call)
    except _EncodedError:
        return
    finally:
        for name in (*stops, "encode_prompt"):
            vars(pipeline).pop(name, None)
    raise PipelineError(
        f"{type(pipeline).__name__} prepares no latents of its own, so its text cannot be encoded by itself; set "
        "model.embeddings=live"
    )


def _stop(*_: Any, **__: Any) -> None:
    raise _EncodedError


class _Recorder:
    def __init__(self, pipeline: Any) -> None:
        self.encode = pipeline.encode_prompt
        self.entries: dict[str, list[list[Any] | None]] = {}
        self._tensors: dict[str, torch.Tensor] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        (key,) = _keys(self.encode, args, kwargs)
        result = self.encode(*args, **kwargs)
        self.entries[key] = [self._keep(value) for value in _sequence(result)]
        return result

    def _keep(self, value: Any) -> list[Any] | None:
        if value is None:
            return None
        tensor = value.detach().cpu().contiguous()
        digest = _digest(tensor)
        self._tensors[digest] = tensor.clone()
        return [digest, _is_row(tensor)]

    def take(self) -> dict[str, torch.Tensor]:
        found, self._tensors = self._tensors, {}
        return found


def _sequence(result: Any) -> tuple[Any, ...]:
    values = result if isinstance(result, tuple) else (result,)
    for value in values:
        if value is not None and not isinstance(value, torch.Tensor):
            raise PipelineError(
                f"encode_prompt returns a {type(value).__name__} among its results, which cannot be stored; set "
                "model.embeddings=live"
            )
    return values


def _keys(encode: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """One key per prompt: a hash of all that its embedding depends on."""
    arguments = dict(inspect.signature(encode).bind(*args, **kwargs).arguments)
    arguments = {name: value for name, value in arguments.items() if name not in _PLACES and value is not None}
    prompts = arguments.pop("prompt")
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    per_prompt = {name: value for name, value in arguments.items() if name.startswith(("prompt", "negative_prompt"))}
    keys = []
    for index, prompt in enumerate(prompts):
        own = {name: _item(value, index, len(prompts)) for name, value in per_prompt.items()}
        try:
            text = json.dumps([prompt, {**arguments, **own}], sort_keys=True)
        except TypeError as error:
            raise PipelineError(
                f"encode_prompt is called with an argument that cannot be stored ({error}); set model.embeddings=live"
            ) from error
        keys.append(hashlib.sha256(text.encode()).hexdigest()[:24])
    return keys


def _item(value: Any, index: int, count: int) -> Any:
    return value[index] if isinstance(value, list) and len(value) == count else value


class Embeddings:
    """What `encode_prompts` stored."""

    def __init__(self, folder: Path) -> None:
        with reading(INDEX, folder):
            record = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            self.folder, self.entries, self.files = folder, dict(record["entries"]), dict(record["files"])

    def use(self, pipeline: Any) -> None:
        """Let the pipeline look prompts up instead of encoding them."""
        encode = type(pipeline).encode_prompt.__get__(pipeline)

        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            keys = _keys(encode, args, kwargs)
            if any(key not in self.entries for key in keys):
                raise PipelineError(
                    f"a prompt of {type(pipeline).__name__} has no embedding in {self.folder}: it was not among those "
                    "that were encoded, or was with other arguments; set model.embeddings=live"
                )
            with reading("an embedding", self.folder):
                return self._collated([self.entries[key] for key in keys], pipeline._execution_device)

        pipeline.encode_prompt = encode_prompt

    def _collated(self, rows: list[list[Any]], device: torch.device) -> Any:
        """As `encode_prompt` returns them; what has no row per prompt is shared."""
        results: list[torch.Tensor | None] = []
        for column in zip(*rows, strict=True):
            if column[0] is None:
                results.append(None)
            elif column[0][1]:
                results.append(torch.cat([self._tensor(*entry) for entry in column]).to(device))
            elif len({name for name, _ in column}) > 1:
                raise PipelineError("prompts whose embeddings differ in length cannot share a batch; set batch_size=1")
            else:
                results.append(self._tensor(*column[0]).to(device))
        return tuple(results) if len(results) > 1 else results[0]

    def _tensor(self, name: str, is_row: bool) -> torch.Tensor:
        file = str(self.files[name])
        if Path(file).name != file:
            raise ValueError(f"{file!r} is no file of the folder")
        with safe_open(self.folder / file, framework="pt") as opened:
            tensor: torch.Tensor = opened.get_tensor(name).clone()
        if _digest(tensor) != name:
            raise ValueError(f"the tensor {name} of {file} has another content")
        if is_row is not _is_row(tensor):
            raise ValueError(f"the tensor {name} of {file} is not told from those that all prompts share")
        return tensor


def _is_row(tensor: torch.Tensor) -> bool:
    """Whether it is of one prompt, and not shared by all."""
    return tensor.ndim > 0 and tensor.shape[0] == 1


def _digest(tensor: torch.Tensor) -> str:
    """Names a tensor by its bytes, dtype and shape."""
    raw = tensor.view(torch.uint8) if tensor.ndim else tensor.reshape(1).view(torch.uint8)
    return hashlib.sha256(raw.numpy().tobytes() + str((tensor.dtype, tensor.shape)).encode()).hexdigest()[:24]
