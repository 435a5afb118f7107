"""Memory of block-wise quantization: accounted on meta, measured under a limit that the float model exceeds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.segquant.offload.peak_memory import offload_peak


class Stack(nn.Module):
    """`depth` residual blocks of width `width`, an inlet and an outlet; every input is kept until the end."""

    def __init__(self, depth: int = 3, width: int = 64) -> None:
        super().__init__()
        self.inlet = nn.Linear(8, width)
        self.layers = nn.ModuleList(
            [nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in range(depth)]
        )
        self.outlet = nn.Linear(width, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inlet(x)
        kept = []
        for layer in self.layers:
            kept.append(x)
            x = layer(x)
        return self.outlet(x + sum(kept))


def test_accounting_by_hand() -> None:
    width, depth, rows = 64, 3, 10
    with torch.device("meta"):
        model, x = Stack(depth, width), torch.empty(rows, 8)
    found = offload_peak(model, (x,), batches=5)
    row = rows * width * 4
    assert found.resident == 4 * (8 * width + width + width * 8 + 8)
    assert found.block == 4 * (2 * 4 * width * width + 5 * width)
    assert found.waiting == 5 * (rows * 8 * 4 + depth * row)  # the input, and what the last block still finds
    assert found.running == 2 * 4 * row  # one block's hidden layer, before and after GELU
    assert found.statistics == 5 * width * (512 * 4 + 4 * 24)
    assert found.solving == 32 * (4 * width) ** 2 + 16 * 4 * width * width
    assert offload_peak(model, (x,), 5, gram=False).solving == 16 * 4 * width * width
    assert found.total == sum(vars(found).values())


@pytest.mark.slow
def test_a_denoiser_of_twelve_billion_fits_a_card_of_24_gb() -> None:
    """FLUX.1-dev at 1024², GPTQ, the paper's 32 calibration prompts at four steps each."""
    from segquant_bench.pipelines.architectures import architecture, build_denoiser, example_inputs

    found = architecture("flux1_dev")
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = build_denoiser(found.class_name, found.config)
    finally:
        torch.set_default_dtype(default)
    inputs = example_inputs(found.class_name, model.config)
    inputs = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in inputs.items()}
    assert sum(parameter.numel() for parameter in model.parameters()) * 2 > 23e9
    peak = offload_peak(model, inputs, batches=32 * 4)
    assert peak.total < 20e9, peak


CHILD = """
import json, resource, sys, torch
from accelerate import init_empty_weights
from safetensors.torch import load_file
from segquant import presets, quantize_
from segquant.offload.weights import FileWeights, Offloaded
from segquant.offload.quantize import quantize_offloaded_
from tests.segquant.offload.test_peak_memory import Stack
from pathlib import Path

mode, path, depth, width, limit = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
torch.set_num_threads(1)
torch.manual_seed(0)
method = presets.smoothquant("w8a8_tensor")

def status(key):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines[key].split()[0]) * 1024

batches = [(torch.randn(8, 8),) for _ in range(4)]
quantize_(Stack(1, 32), method, batches)  # what is allocated once, whatever the model
quantize_offloaded_(Offloaded(Stack(1, 32), lambda names: dict(Stack(1, 32).state_dict())), method, batches)
resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + limit,) * 2)
before = status("VmRSS")
if mode == "whole":
    model = Stack(depth, width)
    model.load_state_dict(load_file(path))
    quantize_(model, method, batches, streaming=True)
else:
    with init_empty_weights():
        model = Stack(depth, width)
    model = quantize_offloaded_(Offloaded(model, FileWeights([path])), method, batches)
total = sum(float(tensor.double().abs().sum()) for tensor in model.state_dict().values())
print(json.dumps({"peak": status("VmHWM") - before, "sum": total}))
"""


def test_a_model_is_quantized_in_less_memory_than_it_has_weights(tmp_path: Path) -> None:
    """The limit is on all that a process may allocate; with it, the float model cannot even be loaded."""
    depth, width = 12, 768
    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    model = Stack(depth, width)
    save_file(model.state_dict(), path)
    whole, block = path.stat().st_size, path.stat().st_size // depth
    quantized = whole // 4
    limit = quantized + 5 * block
    assert limit < 0.7 * whole
    del model
    # freed memory goes back at once, so that the limit is on what is in use
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}

    def run(mode: str, limit: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", CHILD, mode, str(path), str(depth), str(width), str(limit)]
        root = Path(__file__).resolve().parents[3]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, check=False)

    failed = run("whole", limit)
    assert failed.returncode != 0 and "memory" in failed.stderr.lower(), failed.stderr[-500:]
    streamed = run("streamed", limit)
    assert streamed.returncode == 0, streamed.stderr[-2000:]
    found = json.loads(streamed.stdout)
    assert found["peak"] < limit
    free = run("whole", 8 * whole)
    assert free.returncode == 0 and json.loads(free.stdout)["sum"] == found["sum"]
    assert json.loads(free.stdout)["peak"] > 0.9 * whole
