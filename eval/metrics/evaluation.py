from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.metrics.backends import Backends, Network
from segquant_bench.eval.metrics.images import check_sizes, content_hash, list_numbered, list_pictures
from segquant_bench.eval.metrics.statistics import bootstrap_counts

T = TypeVar("T")


@dataclass
class Evaluation:
    """Pictures, prompts and networks of one `evaluate`; loads and computes everything at most once.

    Attributes:
        images: the judged pictures, in prompt order.
        reference: the unquantized model's, in the same order.
        counts: the bootstrap's resamples, int64 [replicates, n].
        per_image: by result name, one value per picture.
        replicates: by result name, float64 [replicates], of `counts`.
        left_out: by result name, float64 [groups], of `statistics.left_out_counts`.
    """

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
    left_out: dict[str, np.ndarray] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    _made: dict[str, Any] = field(default_factory=dict, repr=False)

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
        """List and check the folders.

        Raises:
            EvalError: they do not fit the prompts or each other.
        """
        if not prompts:
            raise EvalError("there are no prompts; pass the captions that the pictures were generated from")
        ours = list_numbered(Path(images), len(prompts), "generated")
        theirs = None if reference is None else list_numbered(Path(reference), len(prompts), "reference")
        if theirs is not None:
            check_sizes(ours, theirs)
        truth = None if real is None else list_pictures(Path(real), "real")
        counts = bootstrap_counts(len(ours), bootstrap, seed)
        return cls(ours, list(prompts), theirs, truth, backends, seed, counts, cache)

    def once(self, key: str, compute: Callable[[], T]) -> T:
        """`compute()` the first time, the same object for `key` afterwards."""
        if key not in self._made:
            self._made[key] = compute()
        found: T = self._made[key]
        return found

    def network(self, network: Network) -> Any:
        """What `load` returns, loaded once."""
        return self.once(f"network/{network.name}", lambda: network.load(self.backends))

    @cached_property
    def same_as_reference(self) -> bool:
        """Whether every picture has the reference's bytes."""
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
