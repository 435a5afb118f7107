"""CLIP scorers by open_clip."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.metrics.backends import Backends
from segquant_bench.eval.metrics.images import content_hash, read_rgb
from segquant_bench.eval.metrics.networks.cache import cached_features
from segquant_bench.hidden import visible

log = logging.getLogger(__name__)

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"


@dataclass(frozen=True)
class Scorer:
    """A CLIP model.

    Attributes:
        name: part of the metrics' names.
        key: changes with the weights.
        preprocess: PIL picture → float32 [3, side, side].
        tokenize: captions → int64 [n, context].
    """

    name: str
    backend: str
    key: str
    model: Any
    preprocess: Any
    tokenize: Any
    device: torch.device
    batch_size: int

    def embed_pictures(self, paths: Sequence[Path], cache: Path | None = None) -> np.ndarray:
        """Unit-length embeddings, float32 [n, d]."""
        return cached_features(self.key, paths, cache, self._embed_batch, self.batch_size)

    def _embed_batch(self, paths: Sequence[Path]) -> np.ndarray:
        with torch.inference_mode():
            stack = torch.stack([self.preprocess(Image.fromarray(read_rgb(path))) for path in paths])
            found: np.ndarray = self.model.encode_image(stack.to(self.device), normalize=True).float().cpu().numpy()
        return found

    def embed_captions(self, captions: Sequence[str]) -> np.ndarray:
        """Unit-length embeddings, float32 [n, d]; warns of captions that may be cut."""
        found, full = [], 0
        with torch.inference_mode():
            for start in range(0, len(captions), self.batch_size):
                tokens = self.tokenize(list(captions[start : start + self.batch_size]))
                full += int((tokens[:, -1] != 0).sum())
                found.append(self.model.encode_text(tokens.to(self.device), normalize=True).float().cpu())
        if full:
            log.warning("%d of %d captions fill the context of %s and may be cut", full, len(captions), self.name)
        return torch.cat(found).numpy()


@contextmanager
def _quiet_root() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    root.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        root.setLevel(level)


def load_scorer(backends: Backends) -> Scorer:
    """EvalError if the scorer of `backends.clip` cannot be had."""
    import open_clip  # takes seconds, and most metrics do not need it

    name, where = backends.clip, backends.clip_path
    identifier, pretrained = _source(backends, open_clip.list_models())
    try:
        with _quiet_root():
            model, _, preprocess = open_clip.create_model_and_transforms(
                identifier, pretrained=pretrained, device=backends.device, load_weights=True
            )
            tokenize = open_clip.get_tokenizer(identifier)
    except Exception as error:  # open_clip, the hub and safetensors each raise their own kinds
        raise EvalError(
            f"CLIP scorer {name!r} cannot be loaded from {where or pretrained!r} ({_first_line(error)}); "
            "set clip_path to a folder or checkpoint on disk"
        ) from error
    source = f"weights {_fingerprint(Path(where))}" if where is not None else backends.clip_pretrained
    return Scorer(
        name=name,
        backend=f"{name} ({source}), open_clip {version('open-clip-torch')}",
        key=f"clip-{name}-{source}".replace("/", "-").replace(" ", "-"),
        model=model.eval(),
        preprocess=preprocess,
        tokenize=tokenize,
        device=torch.device(backends.device),
        batch_size=backends.batch_size,
    )


def _source(backends: Backends, architectures: Sequence[str]) -> tuple[str, str | None]:
    name, where = backends.clip, backends.clip_path
    if where is not None and not Path(where).is_file():
        _check_folder(name, Path(where))
        return f"local-dir:{where}", None
    if name not in architectures:
        raise EvalError(
            f"CLIP scorer {name!r} is no open_clip architecture; set clip_path to the folder "
            f"that holds its {CONFIG_FILE} and {WEIGHTS_FILE}"
        )
    return name, str(where or backends.clip_pretrained)


def _check_folder(name: str, folder: Path) -> None:
    for needed in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / needed).is_file():
            raise EvalError(
                f"CLIP scorer {name!r} was asked for, but {folder / needed} does not exist; set clip_path to "
                f"a folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
            )
    try:
        json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["model_cfg"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise EvalError(f"{folder / CONFIG_FILE} is no open_clip config: it must be JSON with model_cfg") from error


def _fingerprint(where: Path) -> str:
    files = [where]
    if where.is_dir():
        files = [p for p in visible(where.iterdir(), where) if p.is_file() and p.suffix != ".md"]
    return content_hash(files)[:12]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
