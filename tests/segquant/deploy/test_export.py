"""A whole denoiser as a file, run by both engines."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
pytest.importorskip("diffusers")

import onnx

import segquant
from segquant import QuantizationError, export_onnx, presets, quantize_
from segquant.deploy.onnx.export import Exported
from segquant.deploy.onnx.manifest import DATA, MODEL
from segquant.deploy.run import load_exported
from segquant.deploy.run import openvino as openvino_engine
from segquant.layers.layer import QuantLayer
from tests.segquant.deploy.support import traced_once
from tests.segquant.sd3 import random_sd3

ENGINES = ("ort", "openvino")
FLOAT_PRODUCTS = 3
"""The patch embedding and the two products of attention."""
GRAPH = 150_000
"""Bytes of nodes and names in a file of this size of model."""


def call(batch: int, height: int, width: int, words: int, seed: int = 0) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(batch, 4, height, width, generator=g),
        "encoder_hidden_states": torch.randn(batch, words, 32, generator=g),
        "pooled_projections": torch.randn(batch, 32, generator=g),
        "timestep": torch.rand(1, generator=g).expand(batch) * 1000,
        "return_dict": False,
    }


def sd3() -> nn.Module:
    return random_sd3(1, heads=2)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    batches = [call(2, 8, 8, 7, seed) for seed in range(4)]
    return quantize_(sd3(), presets.smoothquant("w8a8"), batches, {})


@pytest.fixture(scope="module")
def exports(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    folder, example = tmp_path_factory.mktemp("exports"), call(1, 8, 8, 7)
    with traced_once():
        return {
            engine: export_onnx(model, folder / engine, (), example, profile=engine, external_data=engine == "openvino")
            for engine in ENGINES
        }


def layers_of(model: nn.Module) -> dict[str, QuantLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantLayer)}


@pytest.mark.parametrize("engine", ENGINES)
def test_every_quantized_layer_runs_in_integers(
    engine: str, model: nn.Module, exports: dict[str, Exported], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_engine, "products_are_exact", lambda: True)  # as on CPUs with VNNI
    counts = load_exported(exports[engine].path.parent, engine).engine.products()
    branches = sum(len(layer.layout.branches) for layer in layers_of(model).values())
    assert counts["int8"] == branches and counts.keys() == {"int8", "float32"}
    assert counts["float32"] <= FLOAT_PRODUCTS
    assert set(exports[engine].layers) == set(layers_of(model)) and set(exports[engine].layers.values()) == {"int8"}


@pytest.mark.parametrize("engine", ENGINES)
def test_other_batches_and_sizes_have_the_references_error(
    engine: str, model: nn.Module, exports: dict[str, Exported]
) -> None:
    running, exact = load_exported(exports[engine].path.parent, engine), sd3()
    for inputs in (call(3, 6, 8, 5, seed=9), call(2, 8, 4, 9, seed=10), call(1, 8, 8, 7), call(1, 2, 2, 1)):
        with torch.no_grad():
            found, ours, wanted = (each(**inputs)[0] for each in (running, model, exact))
        assert found.shape == wanted.shape and error(found, wanted) < 1.03 * error(ours, wanted)


def test_openvino_compiles_for_the_sizes_of_calls(
    model: nn.Module, exports: dict[str, Exported], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, starts = exports["openvino"].path.parent, []
    start = openvino_engine.OpenVino._start
    monkeypatch.setattr(
        openvino_engine.OpenVino, "_start", lambda engine, given: (starts.append(1), start(engine, given))
    )
    monkeypatch.setattr(openvino_engine, "products_are_exact", lambda: True)  # as on CPUs with VNNI
    free, fixed = (load_exported(folder, "openvino", fixed=fixed) for fixed in (False, True))
    assert len(starts) == 1  # nothing to compile for yet
    for inputs in (call(2, 8, 8, 7, seed=9), call(2, 8, 8, 7, seed=10), call(3, 6, 8, 5, seed=9)):
        found, wanted = fixed(**inputs)[0], free(**inputs)[0]
        assert found.shape == wanted.shape and error(found, wanted) < 0.01
    assert len(starts) == 3
    assert fixed.engine.products()["int8"] == sum(len(layer.layout.branches) for layer in layers_of(model).values())
    first = load_exported(folder, "openvino")
    for inputs in (call(2, 8, 8, 7, seed=9), call(2, 8, 8, 7, seed=10)):
        assert torch.equal(first(**inputs)[0], fixed(**inputs)[0])
    counted = len(starts)
    for inputs in (call(3, 6, 8, 5, seed=9), call(2, 8, 8, 7, seed=9), call(1, 6, 6, 5, seed=9)):
        assert torch.equal(first(**inputs)[0], free(**inputs)[0]), "for any sizes from the second on"
    assert len(starts) == counted + 1
    alone = load_exported(folder, "openvino", fixed=True).engine
    assert alone.products() == free.engine.products()
    with pytest.raises(QuantizationError, match="engine 'ort' does not take fixed"):
        load_exported(exports["ort"].path.parent, fixed=True)


def test_openvino_has_attention_and_modulation_in_few_pieces(exports: dict[str, Exported]) -> None:
    """Tokens are joined before heads, keys turned by one transpose, queries alone scaled, smoothings in modulations."""
    counts = {}
    for engine, exported in exports.items():
        nodes = onnx.load(exported.path, load_external_data=False).graph.node
        by_name = {name: node for node in nodes for name in node.output}
        kinds = {name: node.op_type for name, node in by_name.items()}
        made = {name: [kinds.get(each) for each in node.input] for name, node in by_name.items()}
        (softmax,) = (node for node in nodes if node.op_type == "Softmax")
        joined = sum(node.op_type == "Concat" and kinds.get(node.input[0]) == "Transpose" for node in nodes)
        smoothed = sum(node.op_type == "Div" and made.get(node.input[0], [None])[0] == "Mul" for node in nodes)
        counts[engine] = made[softmax.input[0]], joined, smoothed > 3
    assert counts == {"ort": (["Mul", "Mul"], 3, True), "openvino": (["Transpose", "Transpose"], 0, False)}


def error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def test_it_stands_in_the_denoisers_place(model: nn.Module, exports: dict[str, Exported]) -> None:
    running, inputs = load_exported(exports["ort"].path.parent), call(2, 8, 8, 7, seed=3)
    assert running.config.patch_size == model.config.patch_size and running.dtype == torch.float32
    del inputs["return_dict"]
    assert isinstance(running(**inputs, return_dict=False), tuple)
    named = running(inputs["hidden_states"], joint_attention_kwargs=None, **{
        key: value for key, value in inputs.items() if key != "hidden_states"
    })  # fmt: skip
    assert torch.equal(named.sample, running(**inputs)[0])
    one = {**inputs, "timestep": inputs["timestep"][0]}  # as some pipelines pass it
    assert torch.equal(running(**one)[0], named[0])


def test_a_file_holds_the_weights_once(model: nn.Module, exports: dict[str, Exported]) -> None:
    quantized = layers_of(model)
    inside = {f"{name}.{key}" for name, layer in quantized.items() for key, _ in layer.named_buffers()}
    rest = sum(
        tensor.numel() * tensor.element_size()
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if name not in inside
    )
    weights = sum(layer.weight_bytes() for layer in quantized.values())
    for exported in exports.values():
        assert exported.bytes <= 1.05 * (weights + rest) + GRAPH
        tensors = onnx.load(exported.path, load_external_data=False).graph.initializer
        assert len({tensor.name for tensor in tensors}) == len(tensors)
        shapes = {(layer.out_features, layer.in_features) for layer in quantized.values()}
        floats = [tuple(sorted(t.dims)) for t in tensors if t.data_type == onnx.TensorProto.FLOAT]
        assert not {tuple(sorted(shape)) for shape in shapes} & set(floats)


WITHOUT_US = """
import sys
import numpy as np
class Refuse:
    def find_spec(self, name, path=None, target=None):
        assert name.partition(".")[0] not in ("segquant", "torch", "diffusers"), name
sys.meta_path.insert(0, Refuse())
import onnxruntime, openvino
folder, saved = sys.argv[1:]
feeds = dict(np.load(saved))
session = onnxruntime.InferenceSession(folder + "/ort/model.onnx")
np.save(folder + "/ort.npy", session.run(None, feeds)[0])
options = {"LP_TRANSFORMS_MODE": "NO", "INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
compiled = openvino.Core().compile_model(folder + "/openvino/model.onnx", "CPU", options)
np.save(folder + "/openvino.npy", next(iter(compiled(feeds).values())))
"""


def test_a_process_without_segquant_runs_it(model: nn.Module, exports: dict[str, Exported], tmp_path: Path) -> None:
    inputs = call(2, 8, 8, 7, seed=5)
    for engine, exported in exports.items():
        shutil.copytree(exported.path.parent, tmp_path / engine)
    np.savez(tmp_path / "in.npz", **{key: value for key, value in inputs.items() if isinstance(value, Tensor)})
    command = [sys.executable, "-c", WITHOUT_US, str(tmp_path), str(tmp_path / "in.npz")]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    with torch.no_grad():
        wanted, ours = sd3()(**inputs)[0], model(**inputs)[0]
    for engine in ENGINES:
        found = torch.from_numpy(np.load(tmp_path / f"{engine}.npy"))
        assert error(found, wanted) < 1.03 * error(ours, wanted)


def test_wrong_calls_are_told_what_is_allowed(exports: dict[str, Exported]) -> None:
    running = load_exported(exports["ort"].path.parent)
    with pytest.raises(QuantizationError, match=r"hidden_states has the shape \[2, 5, 8, 8\].* takes \[1….*, 4, "):
        running(**{**call(2, 8, 8, 7), "hidden_states": torch.zeros(2, 5, 8, 8)})
    with pytest.raises(QuantizationError, match=r"pooled_projections has the shape \[3, 32\]"):
        running(**{**call(2, 8, 8, 7), "pooled_projections": torch.zeros(3, 32)})
    with pytest.raises(QuantizationError, match="needs timestep"):
        running(**{**call(2, 8, 8, 7), "timestep": None})
    with pytest.raises(QuantizationError, match="no input block_controlnet_hidden_states"):
        running(**call(2, 8, 8, 7), block_controlnet_hidden_states=torch.zeros(1))


def test_folders_that_cannot_run_say_why(exports: dict[str, Exported], tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match=r"model.onnx is missing"):
        load_exported(tmp_path)
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(exports["openvino"].path, alone)
    with pytest.raises(QuantizationError, match=rf"{DATA} is missing; it holds the weights"):
        load_exported(alone, "openvino")
    (alone / DATA).write_bytes(b"few")
    with pytest.raises(QuantizationError, match=rf"{DATA} has 3 bytes instead of"):
        load_exported(alone, "openvino")
    (alone / MODEL).write_bytes(exports["ort"].path.read_bytes()[:5000])
    with pytest.raises(QuantizationError, match="damaged|not written by export_onnx"):
        load_exported(alone)
    with pytest.raises(QuantizationError, match="exported for openvino"):
        load_exported(exports["openvino"].path.parent)
    with pytest.raises(QuantizationError, match="no engine 'ovino'; nearest: openvino"):
        load_exported(exports["openvino"].path.parent, "ovino")
    for engine in ENGINES:
        with pytest.raises(QuantizationError, match="no device 'npu9' here"):
            load_exported(exports[engine].path.parent, engine, device="npu9")


def test_a_package_that_is_not_there_is_named(
    model: nn.Module, exports: dict[str, Exported], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find = segquant.deploy.run.load.importlib.util.find_spec
    absent = ("onnxscript", "openvino")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name in absent else find(name, *rest))
    with pytest.raises(QuantizationError, match=r"needs onnxscript; run pip install '\.\[deploy\]' in a clone"):
        export_onnx(model, tmp_path / "out", (), call(2, 8, 8, 7))
    with pytest.raises(QuantizationError, match="needs openvino"):
        load_exported(exports["openvino"].path.parent, "openvino")


def test_it_says_of_itself_what_it_is(exports: dict[str, Exported]) -> None:
    entries = {entry.key: entry.value for entry in onnx.load(exports["ort"].path).metadata_props}
    about = json.loads(entries["segquant"])
    assert about["profile"] == "ort" and about["kind"] == "SD3Transformer2DModel" and about["outputs"] == ["sample"]
    assert f"{len(about['layers'])} int8" in str(exports["ort"])
