"""How well a picture fits its caption."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.metrics.backends import Backends, Has, Network
from segquant_bench.eval.metrics.images import list_numbered
from segquant_bench.eval.metrics.metric import Metric
from segquant_bench.eval.metrics.statistics import share_interval
from segquant_bench.eval.results import EvalResult

if TYPE_CHECKING:
    from segquant_bench.eval.metrics.evaluation import Evaluation
    from segquant_bench.eval.metrics.networks.clip import Scorer


def clip_scores(pictures: np.ndarray, captions: np.ndarray) -> np.ndarray:
    """100 · max(cos, 0) of row i with row i, float64 [n]."""
    cosine = np.einsum("nd,nd->n", pictures.astype(np.float64), captions.astype(np.float64))
    found: np.ndarray = 100.0 * np.maximum(cosine, 0.0)
    return found


def top1(
    pictures: np.ndarray, own: Sequence[str], embeddings: dict[str, np.ndarray], *, candidates: int, seed: int
) -> np.ndarray:
    """Whether a picture is closest to its own caption among `candidates` different ones; bool [n].

    Raises:
        EvalError: there are fewer captions.
    """
    pool = sorted(embeddings)
    _check_captions(pool, candidates)
    matrix = np.stack([embeddings[caption] for caption in pool]).astype(np.float64)
    position = {caption: i for i, caption in enumerate(pool)}
    rng = np.random.default_rng(seed)
    hits = np.zeros(len(pictures), dtype=bool)
    for i, (picture, caption) in enumerate(zip(pictures.astype(np.float64), own, strict=True)):
        mine = position[caption]
        others = rng.choice(len(pool) - 1, size=candidates - 1, replace=False)
        others = others + (others >= mine)
        hits[i] = matrix[mine] @ picture > (matrix[others] @ picture).max()
    return hits


def _check_captions(captions: Collection[str], candidates: int) -> None:
    if len(captions) < candidates:
        raise EvalError(
            f"caption_top1 among {candidates} captions was asked for, but there are only {len(captions)} "
            "different ones; use more prompts (dataset.size), lower metric.backends.candidates, or leave caption_top1 "
            "out of metric.metrics"
        )


def _load_scorer(backends: Backends) -> Scorer:
    from segquant_bench.eval.metrics.networks.clip import load_scorer  # torch: only where pictures are judged

    return load_scorer(backends)


def _check_scorer(backends: Backends) -> None:
    from segquant_bench.eval.metrics.networks.clip import check_scorer  # torch: only where pictures are judged

    check_scorer(backends)


def _keep_part(scorer: Scorer, paths: Sequence[Path], backends: Backends, cache: Path, has: Has) -> None:
    scorer.keep_part(paths, cache, has)


SCORER = Network("clip", _load_scorer, _check_scorer, _keep_part)


def caption_embeddings(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """By prompt, of unit length, float32 [d]."""
    unique = sorted(set(evaluation.prompts))
    scorer: Scorer = evaluation.network(SCORER)
    return evaluation.once("clip/captions", lambda: dict(zip(unique, scorer.embed_captions(unique), strict=True)))


def picture_embeddings(evaluation: Evaluation, kind: str) -> np.ndarray:
    """Of unit length, float32 [n, d]."""
    scorer: Scorer = evaluation.network(SCORER)
    return evaluation.once(f"clip/{kind}", lambda: scorer.embed_pictures(evaluation.paths(kind), evaluation.cache))


def _clip_score(evaluation: Evaluation) -> EvalResult:
    scorer: Scorer = evaluation.network(SCORER)
    found = caption_embeddings(evaluation)
    captions = np.stack([found[prompt] for prompt in evaluation.prompts])

    def scores(kind: str) -> np.ndarray:
        return clip_scores(picture_embeddings(evaluation, kind), captions)

    unquantized = None if evaluation.reference is None else scores("reference")
    return CLIP_SCORE.per_picture(
        evaluation, scores("images"), backend=scorer.backend, network=scorer.name, unquantized=unquantized
    )


def _caption_top1(evaluation: Evaluation) -> EvalResult:
    scorer: Scorer = evaluation.network(SCORER)
    prompts, captions = evaluation.prompts, caption_embeddings(evaluation)
    candidates, seed = evaluation.backends.candidates, evaluation.seed

    def hits(kind: str) -> np.ndarray:
        return top1(picture_embeddings(evaluation, kind), prompts, captions, candidates=candidates, seed=seed)

    unquantized = None if evaluation.reference is None else hits("reference")
    return CAPTION_TOP1.per_picture(
        evaluation,
        hits("images"),
        backend=f"{scorer.backend}, {candidates} captions",
        network=scorer.name,
        unquantized=unquantized,
    )


CLIP_SCORE = Metric("clip_score", "higher", _clip_score, against="prompt", networks=(SCORER,), order=6)
CAPTION_TOP1 = Metric(
    "caption_top1", "higher", _caption_top1, against="prompt", networks=(SCORER,), paired=None,
    check=lambda prompts, backends: _check_captions(set(prompts), backends.candidates),
)  # fmt: skip
METRICS = (CLIP_SCORE, CAPTION_TOP1)


def retrieval_accuracy(
    images: Path,
    prompts: Sequence[str],
    *,
    backends: Backends,
    pool: Sequence[str] | None = None,
    seed: int = 0,
) -> EvalResult:
    """Share of pictures closest to their own among `backends.candidates` captions, the others from `pool` (`prompts`).

    Raises:
        EvalError: as `evaluate`.
    """
    paths = list_numbered(Path(images), len(prompts), "generated")
    scorer = _load_scorer(backends)
    captions = sorted({*prompts, *(pool or ())})
    embeddings = dict(zip(captions, scorer.embed_captions(captions), strict=True))
    hits = top1(scorer.embed_pictures(paths), prompts, embeddings, candidates=backends.candidates, seed=seed)
    return CAPTION_TOP1.result(
        float(hits.mean()),
        len(hits),
        share_interval(int(hits.sum()), len(hits)) if len(hits) > 1 else None,
        backend=f"{scorer.backend}, {backends.candidates} captions",
        network=scorer.name,
    )
