"""The `cuda` backend against the reference: torch's operators are the same on the CPU."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import segquant
from segquant import Method, QuantizationError, QuantScheme, QuantSpec, Segments, presets
from segquant.kernels import cuda
from segquant.kernels.cuda import Cuda
from segquant.kernels.products import columns as columns_of
from segquant.kernels.products import product
from segquant.layers.layer import QuantLayer
from tests.segquant.kernels.layouts import (
    CUTS,
    FORMATS,
    METHODS,
    PRECISIONS,
    assert_close,
    both_of,
    errors,
    inputs,
    layer_of,
)
from tests.segquant.support import Block, block_batches, tensor

INTEGER = {name: scheme for name, scheme in PRECISIONS.items() if "16" not in name}


def both(layer: QuantLayer, x: Tensor) -> tuple[Tensor, Tensor]:
    return both_of(Cuda(), layer, x)


def close(layer: QuantLayer, x: Tensor) -> None:
    assert_close(layer, *both(layer, x))


@pytest.mark.parametrize("precision", [*INTEGER, "fp8"])
def test_every_layout_is_the_reference(precision: str) -> None:
    for cut, name in itertools.product(CUTS.values(), ("rtn", "svd", "rotated_svd")):
        close(layer_of(INTEGER.get(precision, precision), cut, **METHODS[name]), inputs(11, 384))


@pytest.mark.parametrize("precision", [name for name in FORMATS if "16" not in name])
def test_every_width_is_the_reference(precision: str) -> None:
    for cut in ("dual", "mixed"):
        close(layer_of(FORMATS[precision], CUTS[cut], **METHODS["rotated_svd"]), inputs(11, 384))


@pytest.mark.parametrize("precision", ["w8a8_tensor", "w8a8_dynamic", "w4a8", "w4a4", "dynamic_tensor"])
def test_every_form_for_engines_is_the_reference(precision: str) -> None:
    negatives = ("zero_point", "shift") if precision == "w8a8_tensor" else ("zero_point",)
    for negative, columns, cut in itertools.product(negatives, ("pieces", "fold"), ("dual", "mixed")):
        method = {"negative": negative, "columns": columns, **METHODS["svd"]}
        close(layer_of(INTEGER[precision], CUTS[cut], **method), inputs(11, 384) + 1)


@pytest.mark.parametrize("precision", ["w8a8", "w8a8_dynamic", "w4a8", "fp8"])
def test_every_shape_of_input_is_the_reference(precision: str) -> None:
    layer = layer_of(precision, CUTS["mixed"], **METHODS["smooth"])
    for x in (
        inputs(384), inputs(1, 384), inputs(0, 384), inputs(2, 7, 384), inputs(2, 3, 5, 384), inputs(384, 9).T,
        inputs(4, 768)[:, ::2], inputs(20, 384).bfloat16(), inputs(5, 384).half(), inputs(2, 0, 384),
        torch.zeros(3, 384),
    ):  # fmt: skip
        close(layer, x) if x.numel() else both(layer, x)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        close(layer, inputs(3, 384))


def test_sizes_that_nothing_divides() -> None:
    for columns, outputs in itertools.product((1, 3, 31, 97), (1, 15, 17)):
        for precision in ("w8a8", "w4a8_channel", "fp8", "w6a6"):
            close(layer_of(precision, Segments(), (columns, outputs)), tensor(7, columns))


def test_integers_are_exact() -> None:
    """Any codes, the largest together too, of any sizes, and pieces of wider matrices."""
    generator = torch.Generator().manual_seed(0)
    for columns, rows, outputs in ((1, 1, 1), (65, 13, 19), (2050, 17, 16), (64, 0, 8)):
        weight = torch.randint(-128, 128, (outputs, columns), generator=generator, dtype=torch.int8)
        codes = torch.randint(-128, 128, (rows, columns), generator=generator, dtype=torch.int8)
        weight[0], codes[:1] = -128, -128
        assert torch.equal(product(codes, weight).long(), codes.long() @ weight.long().T)
        left, right = (columns_of(each, columns // 3, columns) for each in (codes, weight))
        assert torch.equal(product(left, right).long(), left.long() @ right.long().T)


def test_bfloat16_takes_low_rank_branches_in_bfloat16() -> None:
    layer, x = layer_of("w8a8", CUTS["plain"], **METHODS["svd"]), inputs(40, 384).bfloat16()
    median, worst = errors(*both(layer, x))
    assert median < 1e-3 and worst < 8e-3  # outputs are spaced by 4e-3 at their largest


def test_what_is_no_number_spreads_over_its_row() -> None:
    for precision in ("w8a8", "w8a8_dynamic", "w4a4", "fp8"):
        layer, x = layer_of(precision, CUTS["mixed"]), inputs(4, 384)
        x[1, 300] = float("nan")
        found, expected = both(layer, x)
        assert torch.equal(found.isnan(), expected.isnan()) and bool(found[1].isnan().all())


def test_convolutions_are_the_reference() -> None:
    torch.manual_seed(0)
    for convolution in (nn.Conv2d(8, 19, 3, stride=2, padding=1), nn.Conv2d(32, 19, 1)):
        model: Any = nn.Sequential(convolution)
        images = [tensor(2, convolution.in_channels, 9, 7, seed=seed) for seed in range(3)]
        method = Method.of("own", "w8a8_dynamic", dualscale=True, convolutions=True)
        segquant.quantize_(model, method, images, {"0": Segments(activation="silu")})
        for x in (images[0], images[1][0], images[2].bfloat16()):
            close(model[0], x)


def test_weights_are_kept_as_they_are_stored() -> None:
    for precision, most in (("w8a8", 1.1), ("w4a8_channel", 0.7)):
        layer = layer_of(precision, Segments(), (384, 256))
        layer.backend = Cuda()
        layer(inputs(2, 384))
        packed = layer._packed
        held = {each.data_ptr(): each.nbytes for each in (*packed.tensors.values(), packed.weight_scale)}
        assert sum(held.values()) - layer.bias.nbytes <= most * 384 * 256


REFUSED = {
    "w4a16": "multiplies codes, and the layer's input stays in float",
    "w4a8": "multiplies one group or piece of columns at a time, which pays from 128 columns on, and these have 32; "
    "'triton' multiplies them at once",
    "w4fp8": "multiplies codes of one kind, and these are int4 and fp8",
    "mxfp4": "multiplies integers, and fp4_e2m1 has none",
    "w8a8_asym": "multiplies integers of a signed byte, which uint8 less its zero point exceeds; use int8",
    "w8a8": "needs an NVIDIA GPU, and the layer is on cpu: 'cpu' and 'reference' run there",
}


@pytest.mark.parametrize("precision", REFUSED)
def test_what_it_cannot_run_is_said(precision: str) -> None:
    scheme = (
        QuantScheme(QuantSpec("int4", "channel"), QuantSpec("fp8", "tensor")) if precision == "w4fp8" else precision
    )
    layer = layer_of(scheme, Segments())
    assert Cuda().why_not(layer.layout, torch.device("cpu")) == REFUSED[precision]


def test_a_gpu_that_is_too_old_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    device = torch.device("cuda")
    for capability, kind, reason in (
        ((7, 5), "int8", "multiplies int8 from compute capability 8.0 on, and this GPU has 7.5"),
        ((8, 6), "fp8", "multiplies fp8 from compute capability 8.9 on, and this GPU has 8.6"),
        ((8, 6), "int8", None),
        ((9, 0), "fp8", None),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert cuda.why_not_on(device, kind) == reason
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert cuda.why_not_on(device, "int8") == (
        "needs an NVIDIA GPU, and this is a ROCm build of torch: 'reference' runs there"
    )


def test_asked_for_on_a_cpu_the_nearest_that_works_is_named() -> None:
    model = Block()
    segquant.quantize_(model, presets.rtn("w8a8"), block_batches(2, seed=1))
    with pytest.raises(QuantizationError, match="layer is on cpu: 'cpu' and 'reference' run there.*name a fallback"):
        segquant.set_backend_(model, "cuda")
    assert set(segquant.backends(model).values()) == {"reference"}


@pytest.mark.slow
def test_compilers_and_exporters_take_it() -> None:
    """One graph, no second one for another batch, and the same numbers; two products, zero point, rotated, static."""
    model: Any = nn.Sequential(nn.Linear(48, 32), nn.GELU(), nn.Linear(32, 64), nn.Linear(64, 48))
    batches = [inputs(20, 48, seed=seed) for seed in range(3)]
    own = {"2": {"precision": "w4a8_channel", "rank": 2}, "3": {"precision": "w8a8", "rotate": True}}
    for negative in ("dual", "zero_point"):
        quantized = segquant.quantize_(
            nn.Sequential(*model),
            presets.segquant_a("w8a8_dynamic", alpha=0.5, overrides=own, negative=negative),
            batches,
        )
        for layer in quantized.modules():
            if isinstance(layer, QuantLayer):
                layer.backend = Cuda()
        x, other = inputs(20, 48), inputs(33, 48)
        expected = quantized(x), quantized(other)
        torch._dynamo.reset()
        compiled = torch.compile(quantized, fullgraph=True, backend="aot_eager")
        torch._dynamo.mark_dynamic(x, 0)
        with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
            assert errors(compiled(x), expected[0])[1] < 1e-6 and errors(compiled(other), expected[1])[1] < 1e-6
        program = torch.export.export(quantized, (x,), dynamic_shapes=({0: torch.export.Dim("rows")},))
        assert errors(program.module()(other), expected[1])[1] < 1e-6
