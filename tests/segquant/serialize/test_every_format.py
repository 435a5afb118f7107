"""Every precision is saved and loaded bit for bit, takes the bytes it says, and older files are read."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from segquant import (
    PRECISIONS,
    Method,
    QuantLinear,
    QuantScheme,
    QuantSpec,
    load_quantized,
    presets,
    quantize_,
    save_quantized,
)
from segquant.layers.layer import QuantLayer
from segquant.numerics.formats import DTYPES
from segquant.numerics.scales import SCALE_DTYPES
from tests.segquant.serialize.before_formats import CHOICES, Net, inputs
from tests.segquant.support import tensor

WIDTH, OUT = 256, 12
DTYPE_BYTES = {"U8": 1, "I8": 1, "F16": 2, "BF16": 2, "F32": 4}


def pair(dtype: torch.dtype = torch.float32) -> nn.Module:
    model = nn.Sequential(nn.Linear(WIDTH, OUT), nn.GELU(), nn.Linear(OUT, WIDTH), nn.Linear(WIDTH, OUT, bias=False))
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.copy_(tensor(*parameter.shape, seed=index) / parameter.shape[-1] ** 0.5)
    return model.to(dtype)


def quantized(method: Method, dtype: torch.dtype = torch.float32) -> nn.Module:
    batches = [tensor(9, WIDTH, seed=seed).to(dtype) for seed in range(3)]
    return quantize_(pair(dtype), method.changed(skip=("2",)), batches)


def sizes_in(file: Path) -> dict[str, int]:
    """Bytes of every tensor of a safetensors file, by its header, which is read here."""
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        assert stop - start == math.prod(entry["shape"]) * DTYPE_BYTES[entry["dtype"]]
        found[name] = stop - start
    assert sum(found.values()) == len(raw) - 8 - length, "nothing lies between the tensors"
    return found


def check_saved(model: nn.Module, fresh: nn.Module, folder: Path) -> None:
    loaded, x = load_quantized(save_quantized(model, folder), fresh), tensor(5, WIDTH, seed=9)
    x = x.to(next(model.parameters()).dtype)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    sizes = sizes_in(folder / "quantized.safetensors")
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantLayer)}
    assert list(layers) == ["0", "3"]
    for name, layer in layers.items():
        other = loaded.get_submodule(name)
        assert other.layout == layer.layout
        for key, buffer in layer.named_buffers():
            again = other.get_buffer(key)
            assert again.dtype == buffer.dtype and torch.equal(again, buffer)
        own = {key: size for key, size in sizes.items() if key.startswith(f"{name}.")}
        assert sum(own.values()) == layer.weight_bytes()
        assert set(own) == {f"{name}.{key}" for key in layer.tensors()}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_is_saved_bit_for_bit_and_counts_its_bytes(precision: str, tmp_path: Path) -> None:
    check_saved(quantized(presets.rtn(precision)), pair(), tmp_path / "model")


@pytest.mark.parametrize("precision", ["w8a8_asym", "nvfp4", "q4_k", "q5_1", "w3a16"])
def test_with_a_branch_and_smoothing_in_bfloat16(precision: str, tmp_path: Path) -> None:
    method = presets.segquant_a(precision, rank=2, alpha=0.5)
    check_saved(quantized(method, torch.bfloat16), pair(torch.bfloat16), tmp_path / "model")


def fits(dtype: str, kept: str) -> bool:
    """Whether there is such a format (test_formats.py has what is said of others), and it is one of those tried."""
    if kept[0] in "kq":
        return "int" in dtype and (kept != "q0" or dtype[0] == "i") and (kept != "q1" or dtype[0] == "u")
    return kept in ("float32", "bfloat16", "e4m3") or dtype in ("int3", "uint5", "fp6_e3m2", "nf4")


@pytest.mark.parametrize(
    "dtype, kept", [(dtype, kept) for dtype in DTYPES for kept in SCALE_DTYPES if fits(dtype, kept)]
)
def test_formats_that_no_name_has(dtype: str, kept: str, tmp_path: Path) -> None:
    spec = QuantSpec(dtype, "group", 16, scale_dtype=kept)
    linear = pair()[3]
    layer = QuantLinear.from_float(linear, presets.rtn(QuantScheme(spec, None)))
    folder = save_quantized(nn.Sequential(layer), tmp_path / "model")
    loaded = load_quantized(folder, nn.Sequential(nn.Linear(WIDTH, OUT, bias=False)))
    x = tensor(3, WIDTH, seed=2)
    assert torch.equal(loaded(x), layer(x)) and loaded[0].layout.scheme == QuantScheme(spec, None)
    assert sum(sizes_in(folder / "quantized.safetensors").values()) == layer.weight_bytes()


def test_convolutions_that_no_super_block_divides_keep_float16_scales(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Conv2d(6, 4, 3))
    quantize_(model, presets.rtn("q4_k", convolutions=True), [tensor(1, 4, 8, 8)])
    assert [layer.layout.weight_spec for layer in model] == [
        QuantSpec("uint4", "group", 18, scale_dtype="q1"), QuantSpec("uint4", "group", 27, scale_dtype="q1"),
    ]  # fmt: skip
    fresh = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Conv2d(6, 4, 3))
    loaded, x = load_quantized(save_quantized(model, tmp_path / "model"), fresh), tensor(1, 4, 8, 8, seed=1)
    assert torch.equal(loaded(x), model(x))


def test_files_without_scale_dtypes_are_read(tmp_path: Path) -> None:
    """Of the version before them; the eight precisions there were are written as then."""
    folder = Path(__file__).parents[1] / "saved_v2"
    text = (folder / "quantized.json").read_text()
    assert "scale_dtype" not in text and "symmetric" not in text
    model, case = load_quantized(folder, Net()), load_file(folder / "expected.safetensors")
    for name, precision in CHOICES.items():
        scheme = PRECISIONS[precision]
        weight = replace(scheme.weight, scale_dtype="float32")  # as all scales were
        assert getattr(model, name).layout.scheme == replace(scheme, weight=weight)
    with torch.no_grad():
        found = model(case["x"])
    assert torch.equal(case["x"], inputs(9))
    # processors round the sums of float32 otherwise; a wrong code or scale would be far beyond
    assert (found - case["y"]).norm() <= 1e-4 * case["y"].norm()
    again = save_quantized(model, tmp_path / "again")
    layers = json.loads((again / "quantized.json").read_text())["layers"]
    for entry in layers.values():  # which is told now where it is not what leaving it out gives
        assert entry["layout"]["scheme"]["weight"].pop("scale_dtype", "float32") == "float32"
    assert layers == json.loads(text)["layers"]
    before, after = (load_file(place / "quantized.safetensors") for place in (folder, again))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
