"""Readers of the library: quantized folders, plans, calibration batches, exports, pieces of killed runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from segquant import QuantizationError, load_quantized, presets, quantize_, read_outcome, save_quantized
from segquant.deploy.onnx.manifest import Dimension, Input, Manifest
from segquant.errors import UnknownHereError
from segquant.keep import Keeper
from segquant.method.plan_file import LayerPlan, write_plan
from segquant_bench.pipelines.config.quantizer import build_quantizer
from segquant_bench.pipelines.errors import PipelineError
from tests.fuzz.target import Target
from tests.segquant.serialize.saved_net import OUTCOME, Net, quantized

REFUSED = (QuantizationError, UnknownHereError)
WEIGHTS, MANIFEST = "quantized.safetensors", "quantized.json"


def _save_net(folder: Path) -> None:
    save_quantized(quantized(), folder, OUTCOME, extra={"note": [1]})


def _load_net(folder: Path) -> None:
    model = load_quantized(folder, Net())
    with torch.no_grad():
        model(torch.zeros(8, 8))


def _outcome(folder: Path) -> None:
    read_outcome(folder)


def _sized(folder: Path) -> None:
    """The manifest knows the size of the damaged tensors, and as the first versions' no digest."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["bytes"] = (folder / WEIGHTS).stat().st_size
    manifest.pop("sha256", None)
    (folder / MANIFEST).write_text(json.dumps(manifest))


CLASS = "config.json"
"""A file of its own for what a manifest holds as "config", so that each damage hits it."""


def _save_denoiser(folder: Path) -> None:
    from tests.segquant.deploy.tiny import small

    save_quantized(quantize_(small(), presets.rtn("w8a8_dynamic"), []), folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / CLASS).write_text(json.dumps(manifest["config"]))
    (folder / MANIFEST).write_text(json.dumps({**manifest, "config": "@config@"}))
    _with_config(folder)


def _with_config(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    text = json.dumps({**manifest, "config": "@config@"}).encode()
    (folder / MANIFEST).write_bytes(text.replace(b'"@config@"', (folder / CLASS).read_bytes()))


def _build(folder: Path) -> None:
    load_quantized(folder)


def _save_plan(folder: Path) -> None:
    layers = [LayerPlan("a.b", {"rotate": True, "rank": 2}, 0.1, 10, 1.5, 0.2, 1.0), LayerPlan("c", {})]
    write_plan(folder / "plan.json", presets.auto("w8a8_tensor", overrides={"c": {"rank": 2}}), layers)


def _read_plan(folder: Path) -> None:
    build_quantizer({"_target_": "segquant.presets.plan", "path": str(folder / "plan.json")})


def _save_batches(folder: Path) -> None:
    from segquant.deploy.diffusers import save_calibration

    batch: dict[str, Any] = {"x": torch.zeros(2, 3), "more": [torch.ones(1), None, 1.5, "text"], "flag": True}
    save_calibration([batch, (torch.zeros(2, 3), {"y": torch.ones(2)})], folder / "batches.safetensors")


def _read_batches(folder: Path) -> None:
    from segquant.deploy.diffusers import load_calibration

    list(load_calibration(folder / "batches.safetensors"))


def _save_export(folder: Path) -> None:
    inputs = [Input("x", "float32", (Dimension("batch", 1, 8), Dimension(None, 4), Dimension("h", 8, None, 8)))]
    found = Manifest("ort", "Net", {"depth": 2}, ["x"], {"flag": True}, inputs, ["sample"], {"a": "qdq"}, True)
    (folder / "manifest.json").write_text(found.dumped())


def _read_export(folder: Path) -> None:
    from segquant.deploy.run.denoiser import ExportedDenoiser

    text = (folder / "manifest.json").read_bytes().decode("utf-8", "replace")
    manifest = Manifest.loaded(text, "model.onnx")
    module = ExportedDenoiser(_Engine(), manifest)  # type: ignore[arg-type]
    module(torch.zeros(1, 4, 8), flag=True, return_dict=False)


class _Engine:
    remark = ""

    def run(self, feeds: dict[str, Any]) -> list[Any]:
        return list(feeds.values())


def _save_piece(folder: Path) -> None:
    Keeper(folder).put("a", {"x": torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)}, {"done": 3})


def _read_piece(folder: Path) -> None:
    Keeper(folder).get("a")


TARGETS = (
    Target("quantized.json", _save_net, _load_net, REFUSED, (MANIFEST,)),
    Target("the method in quantized.json", _save_net, _outcome, REFUSED, (MANIFEST,)),
    Target("quantized.safetensors", _save_net, _load_net, REFUSED, (WEIGHTS,), _sized),
    Target("quantized.json, built from its class", _save_denoiser, _build, REFUSED, (CLASS,), _with_config),
    Target("calibration batches", _save_batches, _read_batches, REFUSED),
    Target("the manifest of an export", _save_export, _read_export, REFUSED),
    Target("plan.json", _save_plan, _read_plan, (PipelineError,)),
    Target("pieces of a killed run", _save_piece, _read_piece, ()),
)
