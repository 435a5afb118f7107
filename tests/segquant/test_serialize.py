"""save_quantized / load_quantized: bit-exact in a new process, atomic, and clear about damage."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from segquant import (
    QuantizationError,
    QuantLinear,
    load_quantized,
    presets,
    quantize_,
    quantize_with_outcome_,
    save_quantized,
)
from tests.segquant.support import BLOCK_SEGMENTS, Block, block_batches

ROOT = Path(__file__).parents[2]


def model(precision: str = "w4a8", dtype: torch.dtype = torch.float32) -> nn.Module:
    block = Block().to(dtype)
    batches = [{k: v.to(dtype) for k, v in batch.items()} for batch in block_batches(5, seed=1)]
    return quantize_(block, presets.segquant_a(precision, rank=4, alpha=0.5), batches, BLOCK_SEGMENTS)


@pytest.mark.parametrize("precision", ["w8a8_tensor", "w4a8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_is_bit_exact(precision: str, dtype: torch.dtype, tmp_path: Path) -> None:
    saved = model(precision, dtype)
    save_quantized(saved, tmp_path / "model")
    batch = {k: v.to(dtype) for k, v in block_batches(1, seed=2)[0].items()}
    for fresh in (Block().to(dtype), meta_block(dtype)):
        loaded = load_quantized(tmp_path / "model", fresh)
        assert torch.equal(loaded(**batch), saved(**batch))
        assert not loaded.training


def meta_block(dtype: torch.dtype) -> nn.Module:
    with torch.device("meta"):
        block = nn.Module.__new__(Block)
        nn.Module.__init__(block)
        block.ada, block.up = nn.Linear(32, 96), nn.Linear(32, 64)
        block.down, block.out = nn.Linear(64, 32), nn.Linear(64, 32, bias=False)
    return block.to(dtype)


def test_new_process_rebuilds_a_diffusers_model(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=32, out_channels=4,
        pos_embed_max_size=4,
    ).eval()  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(2, 4, 4, 4),
        "encoder_hidden_states": torch.randn(2, 3, 32),
        "pooled_projections": torch.randn(2, 32),
        "timestep": torch.tensor([10.0, 700.0]),
        "return_dict": False,
    }
    quantize_(transformer, presets.rtn("w8a8_tensor", seglinear=True, dualscale=True), [inputs])
    with torch.no_grad():
        torch.save({"inputs": inputs, "output": transformer(**inputs)[0]}, tmp_path / "expected.pt")
    save_quantized(transformer, tmp_path / "model")
    code = (
        "import sys, torch, segquant\n"
        "assert 'diffusers' not in sys.modules\n"
        "expected = torch.load(sys.argv[2])\n"
        "model = segquant.load_quantized(sys.argv[1])\n"
        "with torch.no_grad():\n"
        "    output = model(**expected['inputs'])[0]\n"
        "assert torch.equal(output, expected['output'])\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model"), str(tmp_path / "expected.pt")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_manifest_tells_what_was_done(tmp_path: Path) -> None:
    block, method = Block(), presets.segquant_a("w4a8", rank=4, alpha=0.5)
    outcome = quantize_with_outcome_(block, method, block_batches(5, seed=1), BLOCK_SEGMENTS)
    save_quantized(block, tmp_path / "model", outcome, extra={"note": "kept"})
    manifest = json.loads((tmp_path / "model" / "quantized.json").read_text())
    assert set(manifest["layers"]) == {"ada", "up", "down", "out"}
    assert manifest["method"]["name"] == "segquant_a"
    assert manifest["segments"]["ada"] == {"output": [32, 32, 32], "input": None, "activation": "silu",
                                           "input_activations": None}  # fmt: skip
    assert manifest["extra"] == {"note": "kept"} and "torch" in manifest["versions"]


def test_shared_linears_stay_shared(tmp_path: Path) -> None:
    block = model()
    block.alias = block.up
    save_quantized(block, tmp_path / "model")
    fresh = Block()
    fresh.alias = fresh.up
    loaded = load_quantized(tmp_path / "model", fresh)
    assert isinstance(loaded.up, QuantLinear) and loaded.alias is loaded.up


def test_saving_again_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    first, second = model("w8a8_tensor"), model("w4a8")
    save_quantized(first, tmp_path / "model")
    save_quantized(second, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    batch = block_batches(1, seed=2)[0]
    assert torch.equal(load_quantized(tmp_path / "model", Block())(**batch), second(**batch))


def test_a_failing_save_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = model()
    save_quantized(block, tmp_path / "model")
    before = (tmp_path / "model" / "quantized.safetensors").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_quantized(copy.deepcopy(block), tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "quantized.safetensors").read_bytes() == before


def test_other_peoples_folders_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(QuantizationError, match="is no quantized model"):
        save_quantized(model(), tmp_path)
    with pytest.raises(QuantizationError, match="no quantized linear"):
        save_quantized(Block(), tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_damage_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with pytest.raises(QuantizationError, match="quantized.json is missing"):
        load_quantized(folder, Block())
    save_quantized(model(), folder)
    with pytest.raises(QuantizationError, match="pass model="):
        load_quantized(folder)
    with pytest.raises(QuantizationError, match="no linear 'ada'"):
        load_quantized(folder, nn.Linear(3, 3))
    with pytest.raises(QuantizationError, match="does not fit"):
        load_quantized(folder, Block(width=64))
    weights = folder / "quantized.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(QuantizationError, match="truncated"):
        load_quantized(folder, Block())
    weights.write_bytes(b"\xff" * len(whole))
    with pytest.raises(QuantizationError, match="damaged"):
        load_quantized(folder, Block())
    weights.unlink()
    with pytest.raises(QuantizationError, match="quantized.safetensors is missing"):
        load_quantized(folder, Block())
    manifest = folder / "quantized.json"
    manifest.write_text(manifest.read_text().replace('"schema": 2', '"schema": 9'))
    with pytest.raises(QuantizationError, match="schema 9"):
        load_quantized(folder, Block())
    manifest.write_text("{")
    with pytest.raises(QuantizationError, match="no valid JSON"):
        load_quantized(folder, Block())


def test_classes_outside_the_known_packages_are_not_imported(tmp_path: Path) -> None:
    save_quantized(model(), tmp_path / "model")
    path = tmp_path / "model" / "quantized.json"
    manifest = json.loads(path.read_text())
    manifest.update({"class": {"module": "subprocess", "name": "Popen"}, "config": {"args": "true"}})
    path.write_text(json.dumps(manifest))
    with pytest.raises(QuantizationError, match="cannot be rebuilt"):
        load_quantized(tmp_path / "model")


def test_names_that_are_no_folder_for_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    for directory in ("", ".", "..", "/"):
        with pytest.raises(QuantizationError, match="names no folder of its own"):
            save_quantized(model(), directory)
    with pytest.raises(QuantizationError, match="file exists and is no quantized model"):
        save_quantized(model(), tmp_path / "file")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "inside"]


def test_buffers_that_share_memory_or_have_gaps(tmp_path: Path) -> None:
    def made() -> nn.Module:
        found = nn.Sequential(nn.Linear(4, 4))
        table = torch.arange(16.0).view(4, 4)
        for name, buffer in {"whole": table, "part": table[1:], "gaps": table[:, ::2], "turned": table.T}.items():
            found.register_buffer(name, buffer)
        return found

    saved = quantize_(made(), presets.rtn("w8a8_dynamic"), [])
    loaded = load_quantized(save_quantized(saved, tmp_path / "model"), made())
    for name in ("whole", "part", "gaps", "turned"):
        assert torch.equal(loaded.get_buffer(name), saved.get_buffer(name)), name
    assert loaded.turned.stride() == saved.turned.stride() and loaded.gaps.is_contiguous()
