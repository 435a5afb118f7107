"""Finished runs that nobody ran: as many as are asked for, of the shape and size of real ones, the same for one seed.

Every run has a results.json of some 55 kB, a configuration as `segquant` composes it, and an evaluation of its own;
pictures are links to a few folders, each of another noise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from safetensors.numpy import save_file

from segquant_bench.pipelines.config.resolvers import register
from segquant_bench.pipelines.main import CONF

METHODS = (
    "rtn", "mse", "smoothquant", "smoothquant_plus", "awq", "gptq", "gptq_mse", "smoothquant_gptq", "svdquant",
    "svdquant_gptq", "quarot", "quarot_mse", "segquant_a", "segquant_g", "segquant_plus", "segquant_r", "auto",
    "ptq4dit", "q_diffusion", "vidit_q",
)  # fmt: skip
PRECISIONS = {
    "w8a8_tensor": (1.0, 0.26), "w8a8": (0.9, 0.26), "w8a8_dynamic": (0.5, 0.26), "w6a6": (2.5, 0.2),
    "w4a8_channel": (7.0, 0.14), "w4a8": (4.0, 0.15), "w4a8_asym": (3.6, 0.155), "w4a4": (11.0, 0.15),
}  # fmt: skip
"""Error and bytes of each, against the best and against float32."""
PICTURES, SIDE, STEPS, LAYERS, LEFT_OUT = 32, 64, 16, 88, 32
NOISES = (2.0, 4.0, 8.0, 16.0, 32.0)
FLOAT_BYTES = 55_435_520


@dataclass(frozen=True)
class Kind:
    """What a run is of; `method` "none" for an unquantized one."""

    model: str
    precision: str
    method: str
    seed: int


def kinds(seeds: int) -> Iterator[Kind]:
    """Model by model, an unquantized run before the others; without end."""
    for model in map(str, range(10_000)):
        yield Kind(f"model{model}", "w8a8", "none", 0)
        for precision, method, seed in product(PRECISIONS, METHODS, range(seeds)):
            yield Kind(f"model{model}", precision, method, seed)


def write_runs(root: Path, count: int, *, seeds: int = 1, seed: int = 0) -> None:
    """`count` runs in folders of `root`; `seeds`: calibration seeds of each method and precision."""
    draw = np.random.default_rng(seed)
    _write_pictures(root / "pictures", draw)
    configs = _configs()
    slopes = {name: float(factor) for name, factor in zip(METHODS, draw.lognormal(0.0, 0.3, len(METHODS)), strict=True)}
    for number, kind in enumerate(islice(kinds(seeds), count)):
        _write_run(root / f"{number}_{kind.method}_{kind.precision}", number, kind, slopes, configs, draw)


def _write_pictures(folder: Path, draw: np.random.Generator) -> None:
    coarse = draw.integers(0, 256, (PICTURES, 6, 6, 3), dtype=np.uint8)
    clean = [np.asarray(Image.fromarray(each).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for each in coarse]
    for noise in (0.0, *NOISES):
        place = folder / f"{noise:g}"
        place.mkdir(parents=True)
        for index, picture in enumerate(clean):
            spoilt = np.clip(picture + draw.normal(0.0, noise, picture.shape), 0, 255).round().astype(np.uint8)
            Image.fromarray(spoilt).save(place / f"{index:05d}.png")


def _configs() -> dict[tuple[str, str], Any]:
    """Quantizer and precision sections as composed, by group and name; the rest by ("", "")."""
    register()
    found: dict[tuple[str, str], Any] = {}
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        for name in ("none", *METHODS):
            whole: Any = OmegaConf.to_container(compose("config", overrides=[f"quantizer={name}"]))
            found["quantizer", name] = {**whole["quantizer"], "precision": None}
            found["", ""] = whole
        for name in PRECISIONS:
            chosen: Any = OmegaConf.to_container(compose("config", overrides=[f"precision={name}"]))
            found["precision", name] = chosen["precision"]
    return found


def _write_run(
    folder: Path, number: int, kind: Kind, slopes: dict[str, float], configs: Any, draw: np.random.Generator
) -> None:
    (folder / "evaluation").mkdir(parents=True)
    (folder / ".hydra").mkdir()
    is_float = kind.method == "none"
    error = 0.0 if is_float else 0.01 * PRECISIONS[kind.precision][0] * slopes[kind.method] * draw.lognormal(0.0, 0.1)
    noise = min(NOISES, key=lambda each: abs(each - 400 * error)) if error else 0.0
    (folder / "images").symlink_to(f"../pictures/{noise:g}")
    (folder / "reference").symlink_to("../pictures/0")
    values = 12.0 - 20.0 * np.log10(max(error, 1e-3)) + draw.normal(0.0, 2.0, PICTURES)
    fid = 40.0 * error * (1.0 + draw.normal(0.0, 0.02, LEFT_OUT))
    per_image = {"schema": 1, "n": PICTURES, "metrics": {"psnr": values.tolist()}, "unquantized": []}
    (folder / "evaluation" / "per_image.json").write_text(json.dumps(per_image))
    stored = {"left_out/fid_ref[effnet_lite0]": fid}
    save_file(stored, folder / "evaluation" / "features.safetensors", {"n": str(PICTURES), "seed": "0"})
    config = _config(kind, configs)
    share = 1.0 if is_float else PRECISIONS[kind.precision][1] * draw.uniform(1, 1.1)
    (folder / ".hydra" / "config.yaml").write_text(json.dumps(config))
    record = {
        **_known(number, kind, config), **_errors(error, draw),
        "metrics": [_metric("fid_ref[effnet_lite0]", fid, "lower"), _metric("psnr", values, "higher")],
        "weight_bytes": round(FLOAT_BYTES * share),
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(record, indent=1))


def _config(kind: Kind, configs: Any) -> dict[str, Any]:
    rest = configs["", ""]
    return {
        **rest, "quantizer": configs["quantizer", kind.method], "precision": configs["precision", kind.precision],
        "model": {**rest["model"], "name": kind.model}, "calibration": {**rest["calibration"], "seed": kind.seed},
    }  # fmt: skip


def _known(number: int, kind: Kind, config: dict[str, Any]) -> dict[str, Any]:
    costs = {name: {"seconds": 10.0 + number % 7, "peak_memory_mb": 1300.0, "key": f"{number:016x}"}
             for name in ("reference", "calibrate", "graph", "quantize", "generate", "evaluate")}  # fmt: skip
    return {
        "schema": 1, "name": f"{kind.method}_{kind.precision}", "model": kind.model, "model_fingerprint": kind.model,
        "quantizer": kind.method, "precision": kind.precision, "dataset": "emoji", "seed": 0, "n_images": PICTURES,
        "config": config, "config_hash": f"{number:012x}", "stages": costs, "quantizing": ["graph", "quantize"],
        "artifacts": {name: name for name in ("images", "reference", "evaluation")}, "weight_bytes_float": FLOAT_BYTES,
        "prompts": [f"picture {index} of something, noto style" for index in range(PICTURES)], "components": {},
        "versions": {"torch": "2.14.1", "diffusers": "0.42.1"}, "device": {"type": "cpu", "cpus": 2}, "git": "0" * 40,
    }  # fmt: skip


def _errors(error: float, draw: np.random.Generator) -> dict[str, Any]:
    """Of layers, layers by step, and held-out rows; nothing of an unquantized run."""
    if not error:
        return {"output_error": 0.0}
    parts = ("norm1.linear", "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff.net.0.proj", "ff.net.2")
    names = [f"transformer_blocks.{place // len(parts)}.{parts[place % len(parts)]}" for place in range(LAYERS)]
    layers = 0.5 * error * draw.lognormal(0.0, 0.5, LAYERS)
    by_step = layers[:, None] * draw.lognormal(0.0, 0.1, (LAYERS, STEPS))
    cut = {"output": None, "input": None, "activation": "silu", "input_activations": None}
    return {
        "layer_errors": dict(zip(names, layers.tolist(), strict=True)), "output_error": error,
        "layer_step_errors": {
            "steps": list(range(STEPS)),
            "layers": {name: [float(f"{x:.5g}") for x in row] for name, row in zip(names, by_step, strict=True)},
        },
        "per_row_output_errors": (error * draw.lognormal(0.0, 0.2, 32)).tolist(),
        "per_row_steps": [index % STEPS for index in range(32)], "per_row_prompts": [index // 4 for index in range(32)],
        "per_row_energies": draw.uniform(2e3, 4e3, 32).tolist(),
        "statistics": {"segments": dict.fromkeys(names[: LAYERS // 2], cut)},
    }  # fmt: skip


def _metric(name: str, values: np.ndarray, direction: str) -> dict[str, Any]:
    value, half = float(values.mean()), float(2.0 * values.std() / np.sqrt(len(values)))
    return {
        "name": name, "value": value, "n": PICTURES, "direction": direction, "interval": [value - half, value + half],
        "backend": "efficientnet_lite0", "against": "reference", "unit": "dB" if name == "psnr" else "",
    }  # fmt: skip
