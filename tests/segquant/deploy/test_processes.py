"""Our files in a process without segquant, and then with it."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import segquant
from segquant import presets

ROOT = Path(__file__).parents[3]
for package in ("diffusers", "accelerate", "torchao", "comfy_kitchen"):
    pytest.importorskip(package)
import segquant.deploy.diffusers  # noqa: E402
from tests.segquant.deploy.tiny import inputs, out, small  # noqa: E402


def test_files_are_read_without_segquant_and_with_it(tmp_path: Path) -> None:
    exact = small()
    model = segquant.quantize_(copy.deepcopy(exact), presets.rtn("w8a8_dynamic"), [inputs(1)])
    exact.save_pretrained(tmp_path / "float")
    segquant.save_quantized(model, tmp_path / "save_quantized")
    model.save_pretrained(tmp_path / "save_pretrained")
    segquant.export_torchao(model, tmp_path / "torchao")
    segquant.export_comfy(model, tmp_path / "comfy.safetensors", names="diffusers")
    expected = {"inputs": inputs(9), "output": out(model), "exact": out(exact)}
    torch.save(expected, tmp_path / "expected.pt")
    command = [sys.executable, str(Path(__file__).with_name("without_segquant.py")), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
