"""`evaluate`: the metrics of one folder of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eval.backends import Backends
from eval.results import EvalResult

METRICS = (
    "fid_gt", "fid_ref", "kid_gt", "kid_ref", "clip_score", "caption_top1", "lpips", "perceptual", "psnr", "ssim",
)  # fmt: skip


def evaluate(
    images: Path,
    prompts: Sequence[str],
    *,
    reference: Path | None,
    real: Path | None,
    metrics: Sequence[str],
    backends: Backends,
    output: Path,
    seed: int = 0,
    bootstrap: int = 1000,
    cache: Path | None = None,
) -> list[EvalResult]:
    """Judge the PNGs of `images` (00000.png … in prompt order)."""
    raise RuntimeError("the metrics are added by the next commit")


def retrieval_accuracy(
    images: Path, prompts: Sequence[str], *, backends: Backends, pool: Sequence[str] | None = None, seed: int = 0
) -> EvalResult:
    """Share of pictures that lie closest to their own caption among `backends.candidates` captions."""
    raise RuntimeError("the metrics are added by the next commit")
