"""Every layout by both engines, against the reference on the same inputs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

from segquant import PRECISIONS, QuantScheme, QuantSpec, Segments, presets, quantize_
from segquant.deploy.onnx.forms import PROFILES, form_of, why_not
from segquant.deploy.onnx.tensorrt import violations
from segquant.deploy.run.openvino import products_are_exact
from segquant.layers.layer import QuantLayer
from tests.segquant.deploy.support import ENGINES, distance, layer_graph, profile_for, run_layer, started

WIDTH, ROWS = 64, 48
PIECES = Segments(input=(16, 48), input_activations=("silu", None))
DUAL = Segments(activation="silu")
OUTPUTS = Segments(output=(16, 32), activation="silu")
GROUPS8 = QuantScheme(QuantSpec("int8", "group", 16), QuantSpec("int8", "token", dynamic=True))
INT4_INPUT = QuantScheme(QuantSpec("int8", "channel"), QuantSpec("int4", "tensor"))
WHOLE_TENSOR = QuantScheme(QuantSpec("int8", "channel"), QuantSpec("int8", "tensor", dynamic=True))
LINEARS: dict[str, tuple[Any, Segments]] = {
    "per tensor": (presets.rtn("w8a8_tensor"), Segments()),
    "per channel": (presets.rtn("w8a8"), Segments()),
    "per token": (presets.rtn("w8a8_dynamic"), Segments()),
    "of the whole input": (presets.rtn(WHOLE_TENSOR), Segments()),
    "dual": (presets.rtn("w8a8", dualscale=True), DUAL),
    "dual per token": (presets.rtn("w8a8_dynamic", dualscale=True), DUAL),
    "pieces": (presets.rtn("w8a8", seglinear=True, dualscale=True), PIECES),
    "pieces per token": (presets.rtn("w8a8_dynamic", seglinear=True, dualscale=True), PIECES),
    "zero point": (presets.rtn("w8a8", dualscale=True, negative="zero_point"), DUAL),
    "zero point per token": (presets.rtn("w8a8_dynamic", dualscale=True, negative="zero_point"), DUAL),
    "pieces, zero points": (presets.rtn("w8a8", seglinear=True, dualscale=True, negative="zero_point"), PIECES),
    "pieces, zero points per token": (
        presets.rtn("w8a8_dynamic", seglinear=True, dualscale=True, negative="zero_point"),
        PIECES,
    ),
    "shift, folded": (presets.rtn("w8a8", seglinear=True, dualscale=True, deploy="tensorrt"), PIECES),
    "branches": (presets.segquant_a("w8a8_tensor", alpha=0.5), OUTPUTS),
    "rotated": (presets.segquant_r("w8a8", alpha=0.5), OUTPUTS),
    "groups of 8 bits": (presets.rtn(GROUPS8), Segments()),
    "4-bit inputs": (presets.rtn(INT4_INPUT), Segments()),
    "4-bit dual inputs": (presets.rtn(INT4_INPUT, dualscale=True), DUAL),
    "4 bits per channel": (presets.rtn("w4a8_channel"), Segments()),
    "4 bits, inputs in float": (presets.rtn("w4a16"), Segments()),
    "8 bits, inputs in float": (presets.rtn(QuantScheme(QuantSpec("int8", "channel"), None)), Segments()),
}
INT8_INPUT, TOKEN8 = QuantSpec("int8", "tensor"), QuantSpec("int8", "token", dynamic=True)
FORMATS: dict[str, tuple[Any, Segments]] = {
    "w8a8_asym": (presets.rtn("w8a8_asym"), Segments()),
    "w8a8_asym in pieces": (presets.rtn("w8a8_asym", seglinear=True), PIECES),
    "w8a8_asym dual": (presets.rtn("w8a8_asym", dualscale=True), DUAL),
    "w8a8_asym with branches": (presets.rtn("w8a8_asym"), OUTPUTS),
    "one zero point": (presets.rtn(QuantScheme(QuantSpec("uint8", "tensor"), INT8_INPUT)), Segments()),
    "zero points of both, per token": (
        presets.rtn(QuantScheme(QuantSpec("uint8", "channel"), QuantSpec("uint8", "token", dynamic=True))),
        Segments(),
    ),
    "uint4 per channel": (presets.rtn(QuantScheme(QuantSpec("uint4", "channel"), INT8_INPUT)), Segments()),
    "uint6 in groups": (presets.rtn(QuantScheme(QuantSpec("uint6", "group", 32), TOKEN8)), Segments()),
    "w6a6": (presets.rtn("w6a6"), Segments()),
    "w6a6 dual": (presets.rtn("w6a6", dualscale=True), DUAL),
    "int3, static inputs of 5 bits": (
        presets.rtn(QuantScheme(QuantSpec("int3", "channel", scale_dtype="e4m3"), QuantSpec("int5")), dualscale=True),
        DUAL,
    ),
    "static inputs of 6 bits": (presets.rtn(QuantScheme(QuantSpec("int8", "channel"), QuantSpec("int6"))), Segments()),
    "static inputs of uint6": (presets.rtn(QuantScheme(QuantSpec("int7", "tensor"), QuantSpec("uint6"))), Segments()),
    "w8a16": (presets.rtn("w8a16"), Segments()),
    "w3a16": (presets.rtn("w3a16"), Segments()),
    "w2a16": (presets.rtn("w2a16"), Segments()),
    "uint4 alone, in groups": (presets.rtn(QuantScheme(QuantSpec("uint4", "group", 16), None)), OUTPUTS),
    "uint3 alone, in groups": (presets.rtn(QuantScheme(QuantSpec("uint3", "group", 32), None)), Segments()),
    "uint5 alone, in groups": (
        presets.rtn(QuantScheme(QuantSpec("uint5", "group", 16, scale_dtype="bfloat16"), None)),
        Segments(),
    ),
    "uint8 alone": (presets.rtn(QuantScheme(QuantSpec("uint8", "channel"), None)), Segments()),
    "fp8 alone": (presets.rtn(QuantScheme(QuantSpec("fp8", "channel"), None)), Segments()),
    "e5m2 alone, in groups": (
        presets.rtn(QuantScheme(QuantSpec("fp8_e5m2", "group", 32, scale_dtype="e8m0"), None)),
        Segments(),
    ),
    "q8_0": (presets.rtn("q8_0"), Segments()),
    "q8_0 in float32": (presets.rtn(QuantScheme(QuantSpec("int8", "group", 32), None)), Segments()),
    "q4_0": (presets.rtn("q4_0"), Segments()),
    "q5_0": (presets.rtn("q5_0"), Segments()),
}
"""Other formats than the first, by what a file holds: codes of each width, zero points, scales of each kind."""
BLOCKS: dict[str, tuple[Any, Segments]] = {
    "w4a6": (presets.rtn("w4a6"), Segments()),
    "w4a6 dual": (presets.rtn("w4a6", dualscale=True), DUAL),
    "w4a8_asym": (presets.rtn("w4a8_asym"), Segments()),
    "w4a8": (presets.rtn("w4a8"), Segments()),
    "w4a8 with a branch": (presets.segquant_a("w4a8", alpha=0.5, rank=4), OUTPUTS),
    "w4a4": (presets.rtn("w4a4"), Segments()),
    "w4a4 dual": (presets.rtn("w4a4", dualscale=True), DUAL),
}
CONVOLUTIONS: dict[str, tuple[Any, Segments]] = {
    "per channel": (presets.rtn("w8a8", convolutions=True), Segments()),
    "dual, smoothed": (presets.segquant_a("w8a8", alpha=0.5, convolutions=True), DUAL),
    "dual": (presets.rtn("w8a8", dualscale=True, convolutions=True), DUAL),
    "dual, of the whole input": (presets.rtn(WHOLE_TENSOR, dualscale=True, convolutions=True), DUAL),
    "dual, uint4 per channel": (
        presets.rtn(QuantScheme(QuantSpec("uint4", "channel"), INT8_INPUT), dualscale=True, convolutions=True),
        DUAL,
    ),
    "w8a8_asym by two products": (
        presets.rtn(QuantScheme(QuantSpec("uint8", "channel"), INT8_INPUT), dualscale=True, convolutions=True),
        DUAL,
    ),
    "zero point": (presets.rtn("w8a8", dualscale=True, convolutions=True, negative="zero_point"), DUAL),
    "pieces": (presets.rtn("w8a8", seglinear=True, convolutions=True), Segments(input=(4, 12))),
    "of the whole input": (presets.rtn(WHOLE_TENSOR, convolutions=True), Segments()),
    "uint4 per channel, static inputs of 6 bits": (
        presets.rtn(QuantScheme(QuantSpec("uint4", "channel"), QuantSpec("int6")), convolutions=True),
        Segments(),
    ),
    "w8a8_asym": (presets.rtn("w8a8_asym", convolutions=True), Segments()),
    "w8a8_asym dual, smoothed": (presets.segquant_a("w8a8_asym", alpha=0.5, convolutions=True), DUAL),
    "w8a8_asym in pieces": (presets.rtn("w8a8_asym", seglinear=True, convolutions=True), Segments(input=(4, 12))),
    "one zero point": (
        presets.rtn(QuantScheme(QuantSpec("uint8", "tensor"), INT8_INPUT), convolutions=True),
        Segments(),
    ),
    "int3 per tensor, uint8": (
        presets.rtn(QuantScheme(QuantSpec("int3", scale_dtype="e8m0"), QuantSpec("uint8")), convolutions=True),
        Segments(),
    ),
}


def inputs(*shape: int, seed: int = 0, activated: bool = True) -> Tensor:
    x = 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return nn.functional.silu(x) if activated else x


def quantized(module: nn.Module, method: Any, segments: Segments, shape: tuple[int, ...]) -> QuantLayer:
    batches = [(inputs(*shape, seed=seed),) for seed in range(4)]
    (layer,) = quantize_(nn.Sequential(module), method, batches, {"0": segments})
    return layer


def a_linear(method: Any, segments: Segments) -> QuantLayer:
    torch.manual_seed(0)
    return quantized(nn.Linear(WIDTH, ROWS), method, segments, (2, 9, WIDTH))


def a_convolution(method: Any, segments: Segments) -> QuantLayer:
    torch.manual_seed(0)
    convolution = nn.Conv2d(16, 24, 3, stride=2, padding=1)
    return quantized(convolution, method, segments, (2, 16, 9, 10))


def in_integers(form: str) -> set[str]:
    return {"int8": {"int8"}, "4-bit blocks": {"4-bit blocks"}, "weights": {"float32", "4-bit blocks"}}[form]


SHAPES = {"3d": (2, 9, WIDTH), "2d": (5, WIDTH), "4d": (2, 3, 4, WIDTH)}
FEW = ("per channel", "dual per token", "pieces")
"""Layouts that are tried with other numbers of dimensions."""


@pytest.mark.parametrize(
    ("name", "shape"), [*((name, "3d") for name in LINEARS), *((name, shape) for name in FEW for shape in ("2d", "4d"))]
)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_linear_is_the_references(name: str, engine: str, shape: str, tmp_path: Path) -> None:
    layer, x = a_linear(*LINEARS[name]), inputs(*SHAPES[shape], seed=9)
    found, running = run_layer(engine, layer, x, tmp_path)
    apart = distance(found, layer(x))
    lowest = 0.03 if name == "8 bits, inputs in float" and engine == "ort" else 1e-6  # it rounds inputs by itself
    assert float(apart.median()) < lowest and float(apart.max()) < max(0.02, 3 * lowest)
    if engine == "ort" or products_are_exact():
        assert running.products().keys() <= in_integers(form_of(layer, profile_for(engine)))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_format_is_the_references(name: str, engine: str, tmp_path: Path) -> None:
    layer, x = a_linear(*FORMATS[name]), inputs(2, 9, WIDTH, seed=9)
    assert why_not(layer, profile_for(engine)) is None
    found, running = run_layer(engine, layer, x, tmp_path)
    apart, spec = distance(found, layer(x)), layer.layout.weight_spec
    whole = layer.layout.scheme.input is None and spec.bits > 4 and "int" in spec.dtype
    lowest = 0.03 if whole and engine == "ort" else 1e-6  # it rounds inputs by itself
    assert float(apart.median()) < lowest and float(apart.max()) < max(0.02, 3 * lowest)
    if engine == "ort" or products_are_exact():
        form = form_of(layer, profile_for(engine))
        assert running.products().keys() <= in_integers(form)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_of_4_bits_are_no_less_exact(name: str, engine: str, tmp_path: Path) -> None:
    """Engines round inputs as they like, by blocks or not at all: the error against float is what counts."""
    method, segments = BLOCKS[name]
    layer, x = a_linear(method, segments), inputs(2, 9, WIDTH, seed=9)
    torch.manual_seed(0)
    exact = nn.Linear(WIDTH, ROWS)(x).detach()
    found, running = run_layer(engine, layer, x, tmp_path)
    assert float((found - exact).norm()) < 1.03 * float((layer(x) - exact).norm())
    if engine == "ort":
        assert running.products() == {"4-bit blocks": len(layer.layout.branches)}


REFUSED = {
    "fp8", "fp8_dynamic", "mxfp8", "mxfp6", "mxfp4", "mxint8", "nvfp4", "w4a16_nf4", "q4_1", "q5_1", "q2_k", "q4_k",
    "q5_k",
}  # fmt: skip
"""Precisions of floats, of scales that are rounded at run time, and of least values."""


@pytest.mark.parametrize("engine", ENGINES)
def test_every_precision_is_no_less_exact_or_refused(engine: str, tmp_path: Path) -> None:
    """By the error against float, since engines round inputs of blocks as they like."""
    torch.manual_seed(0)
    linear, x, refused = nn.Linear(256, 24), inputs(2, 9, 256, seed=9), set()
    exact = linear(x).detach()
    for name in PRECISIONS:
        layer = quantized(copy.deepcopy(linear), presets.rtn(name), Segments(), (2, 9, 256))
        if why_not(layer, profile_for(engine)) is not None:
            refused.add(name)
            continue
        found, _ = run_layer(engine, layer, x, tmp_path)
        most = 1.03 * (layer(x) - exact).norm()
        if engine == "ort" and layer.layout.scheme.input is None:  # it rounds such inputs by itself
            most = torch.hypot(most, 0.01 * exact.norm())
        assert (found - exact).norm() < most, name
    assert refused == REFUSED


def test_every_precision_is_as_tensorrt_reads_it_or_refused() -> None:
    refused = set()
    for name in PRECISIONS:
        layer = quantized(nn.Linear(256, 24), presets.rtn(name), Segments(), (2, 9, 256))
        if why_not(layer, PROFILES["tensorrt"]) is None:
            assert violations(layer_graph(layer, 3, "tensorrt")) == [], name
        else:
            refused.add(name)
    assert refused == REFUSED - {"fp8"} | {"w8a8_asym", "w4a8_asym", "q4_0", "q5_0"}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_is_the_references(name: str, engine: str, tmp_path: Path) -> None:
    layer, x = a_convolution(*CONVOLUTIONS[name]), inputs(2, 16, 11, 8, seed=9)
    if engine == "ort" and layer.layout.weight_spec.dtype == "uint8":
        assert "no integer convolutions with zero points" in (why_not(layer, profile_for(engine)) or "")
        return
    found, running = run_layer(engine, layer, x, tmp_path)
    apart = distance(found, layer(x))
    assert float(apart.median()) < 1e-6 and float(apart.max()) < 0.02
    if engine == "ort" or products_are_exact():
        assert running.products().keys() == {"int8"}


def saturating(precision: Any = "w8a8") -> QuantLayer:
    """Inputs and weights at the ends of their codes: pairs of products exceed 16 bits."""
    linear = nn.Linear(WIDTH, ROWS)
    nn.init.ones_(linear.weight)
    (layer,) = quantize_(nn.Sequential(linear), presets.rtn(precision), [(torch.ones(2, 9, WIDTH),)], {})
    return layer


@pytest.mark.parametrize(
    "precision",
    ["w8a8", INT4_INPUT, QuantScheme(QuantSpec("int8", "channel"), QuantSpec("int7")), "w6a6", "w8a8_asym"],
    ids=["w8a8", "int4", "int7", "w6a6", "asym"],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_no_product_saturates(engine: str, precision: Any, tmp_path: Path) -> None:
    layer, x = saturating(precision), torch.ones(2, 9, WIDTH)
    assert float(distance(run_layer(engine, layer, x, tmp_path)[0], layer(x)).max()) < 1e-6


def test_signed_weights_are_exact_where_the_session_is_ours(tmp_path: Path) -> None:
    layer, x = saturating(), torch.ones(2, 9, WIDTH)
    running = started("ort", layer_graph(layer, 3, "ort", every_cpu=False), tmp_path, every_cpu=False)
    found = torch.from_numpy(running.run({"x0": x.numpy()})[0])
    assert float(distance(found, layer(x)).max()) < 1e-6


def test_packed_codes_are_stored_once() -> None:
    """4-bit codes take half a byte, no constant is a float copy of the weight."""
    for name in ("4 bits per channel", "per channel", "dual", "w8a8_asym", "uint4 alone, in groups", "q8_0 in float32"):
        layer = a_linear(*{**LINEARS, **FORMATS}[name])
        for profile in ("ort", "openvino"):
            constants = layer_graph(layer, 3, profile).graph.initializers.values()
            size = sum(value.const_value.nbytes for value in constants)
            scale = layer.weight_scale  # bfloat16 stays, others are float32 there
            wider = 0 if scale.dtype == torch.bfloat16 else scale.numel() * (4 - scale.element_size())
            assert size <= layer.weight_bytes() + wider + ROWS + 100, (name, profile)
