"""FID features: clean-fid's Inception, or EfficientNet-Lite0."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segquant_bench.bars import tqdm  # isort: skip - as if it were tqdm's, see runtime.meaning

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.metrics.backends import Backends, Has
from segquant_bench.eval.metrics.networks.cache import cached_features, keep_part
from segquant_bench.eval.metrics.networks.effnet import EFFNET_SIZE, effnet_backend, load_effnet
from segquant_bench.eval.metrics.networks.resize import resizer

log = logging.getLogger(__name__)

INCEPTION_FILE = "inception-2015-12-05.pt"
PUBLISHED = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""SHA-256 of that file as NVIDIA publishes it. It is a program of TorchScript, so no other one is run."""


@dataclass(frozen=True)
class Extractor:
    """A network behind FID and KID.

    Attributes:
        name: part of the metric's name.
        model: float32 [n, 3, size, size] in 0–255 → float32 [n, d].
    """

    name: str
    backend: str
    size: int
    model: Callable[[Tensor], Tensor]
    device: torch.device


def find_inception(given: str | Path | None) -> Path | None:
    """clean-fid's Inception weights in the given place, else in torch's hub folder.

    Never in the system's temporary folder, where clean-fid would look: anybody may put a file there.
    """
    places = [Path(torch.hub.get_dir()) / "checkpoints"]
    if "TORCH_HOME" in os.environ:
        places.append(Path(os.environ["TORCH_HOME"]))
    for place in places if given is None else [Path(given)]:
        path = place if place.name == INCEPTION_FILE else place / INCEPTION_FILE
        if path.is_file():
            return path
    return None


def check_extractor(backends: Backends) -> Path | None:
    """The weights of Inception, None for another extractor.

    Raises:
        EvalError: they are asked for and missing, or the file is another than the published one.
    """
    weights = None if backends.fid == "effnet_lite0" else find_inception(backends.inception)
    if weights is None and backends.fid != "effnet_lite0" and (backends.fid == "inception" or backends.inception):
        place = backends.inception or f"{torch.hub.get_dir()}/checkpoints"
        raise EvalError(
            f"FID with Inception was asked for, but {INCEPTION_FILE} is not in {place}; put it there or choose the "
            "extractor effnet_lite0"
        )
    if weights is not None and _sha256(weights) != PUBLISHED:
        raise EvalError(
            f"{weights} is not the published file (its SHA-256 is another), and as a program it is never run; get it "
            "again, or choose the extractor effnet_lite0"
        )
    return weights


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fid_extractor(backends: Backends) -> Extractor:
    """EvalError if Inception's weights are missing."""
    device = torch.device(backends.device)
    weights = check_extractor(backends)
    if weights is None:
        if backends.fid == "auto":
            _tell_once(f"FID extractor: effnet_lite0, because {INCEPTION_FILE} is nowhere on disk")
        model = load_effnet(backends.device)
        return Extractor("effnet_lite0", effnet_backend(), EFFNET_SIZE, model, device)
    _tell_once(f"FID extractor: inception, weights from {weights}")
    from cleanfid.inception_torchscript import InceptionV3W

    model = InceptionV3W(str(weights.parent), download=False).to(device).eval()
    return Extractor("inception", f"inception (2015-12-05), clean-fid {version('clean-fid')}", 299, model, device)


@lru_cache(maxsize=8)
def _tell_once(line: str) -> None:
    """Once a process: every metric of every run asks for the extractor."""
    log.info("%s", line)


def extract(extractor: Extractor, paths: Sequence[Path], batch_size: int) -> np.ndarray:
    """Features float32 [n, d], read by clean-fid's own pipeline."""
    from cleanfid.fid import get_files_features

    found: np.ndarray = get_files_features(
        [str(path) for path in paths],
        model=extractor.model,
        num_workers=0,
        batch_size=batch_size,
        device=extractor.device,
        custom_fn_resize=resizer(extractor.size),
        verbose=False,
    )
    return found


def fid_features(extractor: Extractor, paths: Sequence[Path], *, batch_size: int, cache: Path | None) -> np.ndarray:
    """Features float32 [n, d], of `cache` where they are there."""
    log.info("FID features (%s) of %d pictures", extractor.name, len(paths))
    with tqdm(total=len(paths), desc=extractor.name, unit="picture", disable=None, leave=False) as bar:

        def compute(batch: Sequence[Path]) -> np.ndarray:
            found = extract(extractor, batch, batch_size)
            bar.update(len(batch))
            return found

        return cached_features(_key(extractor), paths, cache, compute, batch_size)


def keep_fid_part(extractor: Extractor, paths: Sequence[Path], batch_size: int, cache: Path, has: Has) -> None:
    """See `keep_part`."""
    keep_part(_key(extractor), paths, cache, lambda batch: extract(extractor, batch, batch_size), batch_size, has)


def _key(extractor: Extractor) -> str:
    return f"{extractor.name}-cleanfid{version('clean-fid')}"
