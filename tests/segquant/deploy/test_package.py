"""export_package: AOTInductor packages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import segquant
from segquant import QuantizationError, QuantLinear, presets
from segquant.deploy import torch_export
from tests.segquant.support import BLOCK_SEGMENTS, Block, block_batches

ROOT = Path(__file__).parents[3]
BATCH = block_batches(1, seed=9)[0]
RUN = (
    "import sys, torch\n"
    "sys.modules['segquant'] = sys.modules['diffusers'] = None\n"
    "expected = torch.load(sys.argv[2])\n"
    "package = torch._inductor.aoti_load_package(sys.argv[1])\n"
    "for batch, output in expected:\n"
    "    found = package(**batch)\n"
    "    found = found[0] if isinstance(found, (tuple, list)) else found\n"
    "    assert (found - output).norm() < 0.02 * output.norm(), (found - output).norm() / output.norm()\n"
)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return segquant.quantize_(
        Block(), presets.segquant_a("w4a8", rank=2, alpha=0.5), block_batches(2, seed=1), BLOCK_SEGMENTS
    )


@pytest.fixture(scope="module")
def program(model: nn.Module) -> torch.export.ExportedProgram:
    model(**BATCH)
    with torch_export._capturable(model), torch.no_grad():
        return torch_export._captured(model, ((), BATCH), torch_export._shapes(((), BATCH)))


def longer(batch: dict[str, Any]) -> dict[str, Any]:
    return {key: torch.cat([value] * 3) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


def test_what_is_captured_is_the_reference_in_plain_operations(
    model: nn.Module, program: torch.export.ExportedProgram
) -> None:
    for batch in (BATCH, longer(BATCH)):
        with torch.no_grad():
            found, expected = program.module()(**batch), model(**batch)
        assert (found - expected).norm() < 1e-3 * expected.norm()
    namespaces = {node.target.namespace for node in program.graph.nodes if hasattr(node.target, "namespace")}
    assert namespaces == {"aten"}
    kept = {name: tensor.numel() for name, tensor in program.state_dict.items()}
    assert kept["up.codes"] == 32 * 64 / 2 and not program.constants
    assert all(layer.keep_packed is None for layer in model.modules() if isinstance(layer, QuantLinear))


def test_bad_input_is_one_sentence(
    model: nn.Module, program: torch.export.ExportedProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(QuantizationError, match=r"names end in \.pt2"):
        segquant.export_package(model, tmp_path / "x.zip", kwargs=BATCH)
    with pytest.raises(QuantizationError, match="a batch of one"):
        segquant.export_package(model, tmp_path / "x.pt2", kwargs={key: value[:1] for key, value in BATCH.items()})
    with pytest.raises(QuantizationError, match="is given no tensor"):
        segquant.export_package(model, tmp_path / "x.pt2")
    with pytest.raises(QuantizationError, match="has no quantized layer"):
        segquant.export_package(Block(), tmp_path / "x.pt2", kwargs=BATCH)
    with pytest.raises(QuantizationError, match="Block cannot be captured"):
        segquant.export_package(model, tmp_path / "x.pt2", [BATCH["x"]])

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", broken)
    with pytest.raises(QuantizationError, match="cannot compile the model: RuntimeError: no compiler; it needs a C"):
        torch_export._compiled(program, tmp_path / "x.pt2")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_whole_denoiser_runs_in_a_process_with_torch_alone(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from tests.segquant.deploy.tiny import inputs, small

    model = segquant.quantize_(small(), presets.segquant_a("w8a8_tensor", alpha=0.5), [inputs(1)])
    segquant.export_package(model, tmp_path / "model.pt2", kwargs=inputs(1))
    expected = []
    for batch in (inputs(9), longer(inputs(9))):
        with torch.no_grad():
            expected.append((batch, model(**batch)[0]))
    torch.save(expected, tmp_path / "expected.pt")
    command = [sys.executable, "-c", RUN, str(tmp_path / "model.pt2"), str(tmp_path / "expected.pt")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    wrong = {**inputs(9), "hidden_states": inputs(9)["hidden_states"].bfloat16()}
    torch.save([(wrong, expected[0][1])], tmp_path / "expected.pt")
    own = {**os.environ, "AOTI_RUNTIME_CHECK_INPUTS": "1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=own)
    assert done.returncode != 0 and "unmatched dtype" in done.stderr
