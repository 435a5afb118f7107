"""The plug-in: files that no stock call can read, and folders that would be half of one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import segquant
from segquant import QuantizationError, presets

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("accelerate")
import segquant.deploy.diffusers  # noqa: E402
from tests.segquant.deploy.tiny import inputs, out, small  # noqa: E402


@pytest.fixture(scope="module")
def made() -> nn.Module:
    method = presets.segquant_a("w8a8_tensor", alpha=0.5, skip=("proj_out",))
    return segquant.quantize_(small(), method, [inputs(1), inputs(2)])


@pytest.fixture
def model(made: nn.Module) -> nn.Module:
    return copy.deepcopy(made)


def read(folder: Path, **kwargs: Any) -> nn.Module:
    return diffusers.SD3Transformer2DModel.from_pretrained(folder, **kwargs)


def adapted(model: nn.Module, beside: str = "to_q") -> nn.Module:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model.add_adapter(peft.LoraConfig(r=2, target_modules=[beside], init_lora_weights=False))
    return model


@pytest.mark.parametrize("beside", ["to_q", "proj_out"])
def test_a_folder_with_adapters_says_who_reads_it(model: nn.Module, tmp_path: Path, beside: str) -> None:
    """Beside a quantized layer and beside one in float."""
    segquant.save_quantized(adapted(model, beside), tmp_path / "m")
    told = rf"an adapter at \S*{beside}, .*as model=, or .*unload_lora_weights"
    for load in (read, segquant.load_quantized):
        with pytest.raises(QuantizationError, match=told):
            load(tmp_path / "m")
    again = segquant.load_quantized(tmp_path / "m", adapted(small(seed=4), beside))
    assert torch.equal(out(again), out(model))
