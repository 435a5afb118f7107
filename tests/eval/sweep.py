"""A fake finished sweep: pictures, evaluations and results.json as the pipeline writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segquant_bench.eval import Backends, evaluate
from tests.eval.support import noisy, smooth_pictures, write_pictures

QUALITY = {"rtn": 24.0, "smoothquant": 16.0, "segquant_g": 8.0}
SWEEP = [("none", "w8a8_tensor")] + [(q, p) for p in ("w8a8_tensor", "w4a8") for q in QUALITY]


def write_sweep(
    root: Path,
    prompts: Sequence[str],
    *,
    size: int = 32,
    metrics: Sequence[str] = ("fid_ref", "psnr", "ssim"),
    backends: Backends | None = None,
) -> Path:
    """Seven runs whose pictures get noisier from segquant_g to rtn and from 8 to 4 bits."""
    clean = smooth_pictures(len(prompts), size, seed=0)
    reference = write_pictures(root / "cache" / "reference", clean)
    for job, (quantizer, precision) in enumerate(SWEEP):
        folder = root / str(job)
        sigma = QUALITY.get(quantizer, 0.0) * (2.0 if precision == "w4a8" else 1.0)
        pictures = noisy(clean, sigma, seed=1) if sigma else clean
        write_pictures(folder / "images", pictures)
        results = evaluate(
            folder / "images", prompts, reference=reference, real=None, metrics=metrics,
            backends=backends or Backends(fid="effnet_lite0"), output=folder / "evaluation", bootstrap=200,
            cache=root / "cache" / "features",
        )  # fmt: skip
        record = run_record(quantizer, precision, sigma, prompts, [r.to_dict() for r in results])
        (folder / "reference").symlink_to("../cache/reference")
        (folder / "results.json").write_text(json.dumps(record))
    return root


def run_record(quantizer: str, precision: str, sigma: float, prompts: Sequence[str], metrics: list[dict]) -> dict:
    """The content of one results.json."""
    rng = np.random.default_rng(7)
    layers = {f"blocks.{i}.linear": float(e) for i, e in enumerate(np.exp(rng.normal(-3.5, 0.6, 40)))}
    scale = sigma / 8.0
    float_run = quantizer == "none"
    errors = {} if float_run else {name: e * scale for name, e in layers.items()}
    rows = [] if float_run else [float(0.04 * scale * np.exp(rng.normal(0, 0.2))) for _ in range(20)]
    weight_bytes = 56_123_456 if float_run else (14_500_000 if precision == "w8a8_tensor" else 8_200_000)
    return {
        "schema": 1,
        "name": f"{quantizer}-{precision}",
        "model": "emoji_sd3",
        "quantizer": quantizer,
        "precision": "float32" if float_run else precision,
        "dataset": "emoji",
        "seed": 0,
        "n_images": len(prompts),
        "config": {},
        "config_hash": f"{quantizer}-{precision}",
        "metrics": metrics,
        "layer_errors": errors,
        "layer_error": {"mean": None, "median": None, "geometric_mean": None, "n": len(errors)},
        "output_error": 0.0 if float_run else float(np.mean(rows)),
        "per_row_output_errors": rows,
        "per_row_prompts": [index // 4 for index in range(len(rows))],
        "stages": {
            "reference": {"seconds": 12.3, "peak_memory_mb": 900.0, "cached": True, "key": "r", "path": "x"},
            "quantize": {
                "seconds": 3.0 + sigma,
                "peak_memory_mb": 1234.5,
                "cached": False,
                "key": "q",
                "path": "y",
            },
        },
        "artifacts": {"images": "images", "reference": "reference", "evaluation": "evaluation"},
        "prompts": list(prompts),
        "weight_bytes": weight_bytes,
        "weight_bytes_float": 56_123_456,
        "versions": {"torch": "2.14.1", "diffusers": "0.42.1"},
        "device": {"name": "cpu", "threads": 2},
        "git": "0123abc",
    }
