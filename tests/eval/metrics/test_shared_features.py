"""Features that several processes compute in parts are those of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from segquant_bench.eval import Backends
from segquant_bench.eval.metrics.evaluate import evaluate, keep_features
from segquant_bench.eval.metrics.networks import cache as cache_module

METRICS = ("fid_ref", "fid_gt", "clip_score", "psnr")


def test_parts_are_found_and_change_nothing(
    images: Path, reference: Path, real: Path, prompts: list[str], backends: Backends, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    kept = tmp_path / "kept"
    given = {"reference": reference, "real": real, "metrics": METRICS, "backends": backends}
    alone = evaluate(images, prompts, output=tmp_path / "alone", bootstrap=20, cache=None, **given)
    for number in range(2):
        before = set(kept.glob("*"))
        keep_features(images, prompts, cache=kept, has=lambda start, size, n=number: start // size % 2 == n, **given)
        assert len(set(kept.glob("*")) - before) == (10, 6)[number]  # of 3, 3 and 4 batches, and of 3 and 3
    together = evaluate(images, prompts, output=tmp_path / "together", bootstrap=20, cache=kept, **given)
    assert [each.to_dict() for each in alone] == [each.to_dict() for each in together]

    monkeypatch.setattr(cache_module, "_save", None)  # nothing is left to keep
    keep_features(images, prompts, cache=kept, has=lambda start, size: True, **given)


def test_a_part_that_is_damaged_is_made_again(tmp_path: Path, images: Path) -> None:
    paths = sorted(images.glob("*.png"))[:4]
    asked: list[int] = []

    def compute(batch: object) -> np.ndarray:
        asked.append(len(batch))  # type: ignore[arg-type]
        return np.ones((len(batch), 2), dtype=np.float32)  # type: ignore[arg-type]

    for _ in range(2):
        cache_module.keep_part("key", paths, tmp_path, compute, 2, lambda start, size: start == 2)
    assert asked == [2]
    (place,) = tmp_path.iterdir()
    place.write_bytes(b"half")
    cache_module.keep_part("key", paths, tmp_path, compute, 2, lambda start, size: start == 2)
    assert asked == [2, 2]
