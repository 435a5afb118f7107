"""CLIP scorers by open_clip."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.metrics.backends import Backends, Has
from segquant_bench.eval.metrics.images import content_hash, read_rgb
from segquant_bench.eval.metrics.networks.cache import cached_features, keep_part
from segquant_bench.eval.metrics.networks.clip_source import find_source
from segquant_bench.hidden import visible

log = logging.getLogger(__name__)


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

    def keep_part(self, paths: Sequence[Path], cache: Path, has: Has) -> None:
        """See `networks.cache.keep_part`."""
        keep_part(self.key, paths, cache, self._embed_batch, self.batch_size, has)

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
    """EvalError if the scorer of `backends.clip` cannot be had, or its weights belong to another architecture."""
    import open_clip  # takes seconds, and most metrics do not need it

    name, where, source = backends.clip, backends.clip_path, find_source(backends)
    try:
        with _quiet_root():
            model, _, preprocess = open_clip.create_model_and_transforms(
                source.identifier, pretrained=source.pretrained, device=backends.device, load_weights=True,
                **source.preprocess,
            )  # fmt: skip
            tokenize = open_clip.get_tokenizer(source.identifier)
    except Exception as error:  # open_clip, the hub and safetensors each raise their own kinds
        raise EvalError(
            f"CLIP scorer {name!r} cannot be loaded from {where or source.pretrained!r} ({_first_line(error)}); "
            "set clip_path to a folder or checkpoint on disk"
        ) from error
    weights = f"weights {_fingerprint(Path(where))}" if where is not None else backends.clip_pretrained
    return Scorer(
        name=name,
        backend=f"{name} ({weights}), open_clip {version('open-clip-torch')}",
        key=f"clip-{name}-{weights}{_mark(source.preprocess)}".replace("/", "-").replace(" ", "-"),
        model=model.eval(),
        preprocess=preprocess,
        tokenize=tokenize,
        device=torch.device(backends.device),
        batch_size=backends.batch_size,
    )


def _mark(preprocess: Mapping[str, Any]) -> str:
    """What a checkpoint file does not hold, for the key of its features."""
    text = json.dumps(dict(preprocess), sort_keys=True)
    return f"-{hashlib.sha256(text.encode()).hexdigest()[:8]}" if preprocess else ""


def check_scorer(backends: Backends) -> None:
    """Look for the scorer without loading it; weights of a tag are fetched.

    Raises:
        EvalError: as `load_scorer`.
    """
    source = find_source(backends)
    if backends.clip_path is not None:
        return
    from open_clip import pretrained  # put off: seconds

    record = pretrained.get_pretrained_cfg(source.identifier, str(source.pretrained))
    try:
        pretrained.download_pretrained(record)
    except Exception as error:  # the hub and urllib each raise their own kinds
        raise EvalError(
            f"CLIP scorer {backends.clip!r} needs weights {source.pretrained!r}, which cannot be fetched "
            f"({_first_line(error)}); set clip_path to a folder or checkpoint on disk"
        ) from error


def _fingerprint(where: Path) -> str:
    files = [where]
    if where.is_dir():
        files = [p for p in visible(where.iterdir(), where) if p.is_file() and p.suffix != ".md"]
    return content_hash(files)[:12]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
