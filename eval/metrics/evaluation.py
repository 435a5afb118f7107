"""The pictures of one evaluation and what was computed from them so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.metrics.backends import Backends
from segquant_bench.eval.metrics.clip import Scorer, clip_scores, load_scorer, top1
from segquant_bench.eval.metrics.features import EffNetLite0, Extractor, fid_extractor, fid_features
from segquant_bench.eval.metrics.images import check_sizes, content_hash, list_numbered, list_pictures
from segquant_bench.eval.metrics.statistics import bootstrap_counts


@dataclass
class Evaluation:
    """Pictures, prompts and networks of one `evaluate`; loads and computes everything at most once."""

    images: list[Path]
    prompts: list[str]
    reference: list[Path] | None
    real: list[Path] | None
    backends: Backends
    seed: int
    counts: np.ndarray
    cache: Path | None
    per_image: dict[str, list[float | str]] = field(default_factory=dict)
    per_image_unquantized: dict[str, list[float | str]] = field(default_factory=dict)
    replicates: dict[str, np.ndarray] = field(default_factory=dict)
    found_features: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        images: Path,
        prompts: Sequence[str],
        reference: Path | None,
        real: Path | None,
        backends: Backends,
        seed: int,
        bootstrap: int,
        cache: Path | None,
    ) -> Evaluation:
        """List and check the folders; EvalError if they do not fit the prompts or each other."""
        if not prompts:
            raise EvalError("there are no prompts; pass the captions that the pictures were generated from")
        ours = list_numbered(Path(images), len(prompts), "generated")
        theirs = None if reference is None else list_numbered(Path(reference), len(prompts), "reference")
        if theirs is not None:
            check_sizes(ours, theirs)
        truth = None if real is None else list_pictures(Path(real), "real")
        counts = bootstrap_counts(len(ours), bootstrap, seed)
        return cls(ours, list(prompts), theirs, truth, backends, seed, counts, cache)

    def load_networks(self, metrics: Sequence[str]) -> None:
        """Load what the metrics need, so that missing weights are told before anything is computed."""
        if any(name.startswith(("fid_", "kid_")) for name in metrics):
            _ = self.extractor
        if {"clip_score", "caption_top1"} & set(metrics):
            _ = self.scorer
        if "lpips" in metrics:
            from segquant_bench.eval.metrics.perceptual import lpips_weights

            lpips_weights(self.backends.lpips)

    @property
    def device(self) -> torch.device:
        """Where the networks run."""
        return torch.device(self.backends.device)

    @cached_property
    def extractor(self) -> Extractor:
        """The network behind FID and KID."""
        return fid_extractor(self.backends)

    @cached_property
    def effnet(self) -> EffNetLite0:
        """The embedded network, shared with the extractor where that is the same."""
        if self.backends.fid != "inception" and isinstance(self.extractor.model, EffNetLite0):
            return self.extractor.model
        return EffNetLite0().to(self.device)

    @cached_property
    def scorer(self) -> Scorer:
        """The CLIP scorer."""
        return load_scorer(self.backends)

    @cached_property
    def captions(self) -> dict[str, np.ndarray]:
        """Embedding of every different prompt."""
        unique = sorted(set(self.prompts))
        return dict(zip(unique, self.scorer.embed_captions(unique), strict=True))

    @cached_property
    def same_as_reference(self) -> bool:
        """True if every picture has the reference's bytes, as in the unquantized model's own run."""
        return self.reference is not None and content_hash(self.images) == content_hash(self.reference)

    @property
    def pairs(self) -> list[tuple[Path, Path]]:
        """(ours, the unquantized model's) by prompt."""
        return list(zip(self.images, self.paths("reference"), strict=True))

    def paths(self, kind: str) -> list[Path]:
        """The pictures of ``"images"``, ``"reference"`` or ``"real"``; EvalError if not given."""
        found: list[Path] | None = getattr(self, kind)
        if found is None:
            raise EvalError(f"the folder of {kind} pictures was not given")
        return found

    def features(self, kind: str) -> np.ndarray:
        """FID features of one of the folders, float32 [n, d]."""
        if kind not in self.found_features:
            paths = self.paths(kind)
            self.found_features[kind] = fid_features(
                self.extractor, paths, batch_size=self.backends.batch_size, cache=self.cache
            )
        return self.found_features[kind]

    def clip_scores(self, kind: str) -> np.ndarray:
        """Per-picture CLIP scores of one of the folders, float64 [n]."""
        captions = np.stack([self.captions[prompt] for prompt in self.prompts])
        return clip_scores(self._pictures(kind), captions)

    def top1(self, kind: str) -> np.ndarray:
        """Per-picture caption retrieval hits of one of the folders, float64 [n]."""
        return top1(
            self._pictures(kind),
            self.prompts,
            self.captions,
            candidates=self.backends.candidates,
            seed=self.seed,
        )

    def _pictures(self, kind: str) -> np.ndarray:
        key = f"clip/{kind}"
        if key not in self.found_features:
            self.found_features[key] = self.scorer.embed_pictures(self.paths(kind), self.cache)
        return self.found_features[key]
