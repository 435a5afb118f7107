"""The `triton` backend against the reference, and its integers against int64: on a GPU, or in Triton's interpreter.

Run by `test_triton.py`, in a process of its own: the interpreter must be chosen before triton is imported.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import segquant
from segquant import Method, QuantScheme, QuantSpec, Segments, presets
from segquant.kernels.triton import operators
from segquant.kernels.triton.backend import Triton
from segquant.kernels.triton.plan import FEW, MANY, SOME, tiles_for
from segquant.layers.layer import QuantLayer
from segquant.numerics.functional import pack_int4
from tests.segquant.kernels.layouts import (
    METHODS,
    assert_close,
    both_of,
    errors,
    inputs,
    layer_of,
)
from tests.segquant.support import tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZE = (128, 19)
PRECISIONS: dict[str, Any] = {
    name: name
    for name in ("w8a8_tensor", "w8a8", "w8a8_dynamic", "w4a8_channel", "w4a8", "w4a4", "w6a6", "w4a6", "w4a8_asym")
} | {
    "dynamic_tensor": QuantScheme(QuantSpec("int8", "channel"), QuantSpec("int8", "tensor", dynamic=True)),
    "w8a4": QuantScheme(QuantSpec("int8", "channel"), QuantSpec("int4", "group", 32, dynamic=True)),
    "w4g16a8g8": QuantScheme(QuantSpec("int4", "group", 16), QuantSpec("int8", "group", 8, dynamic=True)),
    "w8g6": QuantScheme(QuantSpec("int8", "group", 6), QuantSpec("int8", "token", dynamic=True)),
    "w3a7_asym": QuantScheme(
        QuantSpec("uint3", "group", 32, scale_dtype="bfloat16"), QuantSpec("uint7", "group", 32, dynamic=True)
    ),
}  # fmt: skip
CUTS = {
    "plain": Segments(),
    "dual": Segments(activation="gelu"),
    "heads": Segments(input=(64, 64)),
    "mixed": Segments(input=(64, 64), input_activations=(None, "silu"), output=(5, 14)),
}
ODD, ODD_SIZE = "w8g6", (96, 19)
ODD_CUTS = {
    **CUTS,
    "heads": Segments(input=(48, 48)),
    "mixed": Segments(input=(24, 72), input_activations=(None, "silu")),
}
"""Pieces of groups of six."""


def both(layer: QuantLayer, x: Tensor) -> tuple[Tensor, Tensor]:
    layer.to(DEVICE)
    return both_of(Triton(), layer, x.to(DEVICE))


def close(layer: QuantLayer, x: Tensor) -> None:
    assert_close(layer, *both(layer, x))


def layer_for(precision: str, cut: str, method: str) -> QuantLayer:
    cuts, size = (ODD_CUTS, ODD_SIZE) if precision == ODD else (CUTS, SIZE)
    return layer_of(PRECISIONS[precision], cuts[cut], size, **METHODS[method])


QUICK = [("plain", "rotated_svd"), ("dual", "smooth"), ("mixed", "svd")]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("cut", "method"), QUICK)
def test_layouts_are_the_reference(precision: str, cut: str, method: str) -> None:
    layer = layer_for(precision, cut, method)
    assert Triton().why_not(layer.layout, DEVICE) is None
    close(layer, inputs(3, layer.in_features))


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_layout_is_the_reference(precision: str) -> None:
    for cut, method in itertools.product(CUTS, METHODS):
        if (cut, method) not in QUICK:
            layer = layer_for(precision, cut, method)
            close(layer, inputs(5, layer.in_features))


@pytest.mark.parametrize("precision", ["w8a8_tensor", "w8a8_dynamic", "w4a8", "w4a4", "dynamic_tensor"])
def test_forms_for_engines_are_the_reference(precision: str) -> None:
    negatives = ("zero_point", "shift") if precision == "w8a8_tensor" else ("zero_point",)
    for negative, columns in itertools.product(negatives, ("pieces", "fold")):
        method = {"negative": negative, "columns": columns, **METHODS["smooth"]}
        close(layer_of(PRECISIONS[precision], CUTS["mixed"], SIZE, **method), inputs(3, SIZE[0]) + 1)


@pytest.mark.parametrize("precision", ["w8a8_dynamic", pytest.param("w8a8", marks=pytest.mark.slow)])
def test_every_shape_of_input_is_the_reference(precision: str) -> None:
    width = SIZE[0]
    layer = layer_of(precision, CUTS["mixed"], SIZE, **METHODS["smooth"])
    for x in (
        inputs(width), inputs(0, width), inputs(2, 2, width), inputs(1, 1, 2, width), inputs(width, 3).T,
        inputs(2, 2 * width)[:, ::2], inputs(3, width).bfloat16(), inputs(3, width).half(), inputs(2, 0, width),
        torch.zeros(2, width),
    ):  # fmt: skip
        close(layer, x) if x.numel() else both(layer, x)
    with torch.inference_mode(), torch.autocast(DEVICE.type, torch.bfloat16):
        close(layer, inputs(2, width))


def test_sizes_that_nothing_divides_and_more_rows_than_a_tile() -> None:
    for columns, outputs, rows in ((1, 1, 7), (3, 17, 7), (31, 15, 20), (97, 33, 7)):
        for precision in ("w8a8", "w4a8_channel"):
            close(layer_of(precision, Segments(), (columns, outputs)), tensor(rows, columns))


def test_bfloat16_takes_low_rank_branches_in_bfloat16() -> None:
    x = inputs(5, SIZE[0]).bfloat16()
    median, worst = errors(*both(layer_of("w8a8", Segments(), SIZE, **METHODS["svd"]), x))
    assert median < 1e-3 and worst < 8e-3  # outputs are spaced by 4e-3 at their largest


@pytest.mark.parametrize(("bits", "given"), [(8, 8), (4, 8), (8, 6), (4, 5)])
@pytest.mark.parametrize("dual", [0, 1])
def test_integers_are_exact(bits: int, given: int, dual: int) -> None:
    """Any codes, the largest together too: scales of one, compared in int64."""
    low, least = -(2 ** (bits - 1)), -(2 ** (given - 1))
    generator = torch.Generator().manual_seed(0)
    for columns, rows, outputs in ((1, 1, 1), (65, 18, 37), (1030, 2, 16)):
        weight = torch.randint(low, -low, (outputs, columns), generator=generator, dtype=torch.int8)
        codes = torch.randint(least, -least, (rows, columns), generator=generator)
        weight[0], codes[0] = low, least
        stored = weight if bits == 8 else pack_int4(weight)
        cuts, table = operators.tables((columns,), (dual,), (columns,), DEVICE)
        one = torch.ones(1, 1, device=DEVICE)
        found = operators.linear(
            codes.float().to(DEVICE), stored.to(DEVICE), one.expand(outputs, 1).contiguous(), None, None, None, one,
            one if dual else None, None, [outputs], [columns], [dual], [columns], bits, given, False, None, cuts, table,
        )  # fmt: skip
        assert torch.equal(found.cpu(), (codes.long() @ weight.long().T).float())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["w8a8", "w4a8"])
def test_tiles_change_no_bit(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = layer_of(precision, CUTS["mixed"], SIZE), inputs(20, SIZE[0])
    capability = operators._capability(DEVICE) if DEVICE.type == "cuda" else (9, 0)
    found = []
    for tile in sorted({tile for most in (FEW, SOME, MANY) for tile in tiles_for(capability, most, 3)}, key=str):
        monkeypatch.setattr(operators, "tiles_for", lambda *_, tile=tile: (tile,))
        operators._tuned.cache_clear()
        found.append(both(layer, x)[0])
    operators._tuned.cache_clear()
    assert len(found) > 3 and all(torch.equal(each, found[0]) for each in found)


def test_what_is_no_number_spreads_over_its_row() -> None:
    for precision in ("w8a8", "w8a8_dynamic", "w4a4"):
        layer, x = layer_of(precision, CUTS["mixed"], SIZE), inputs(3, SIZE[0])
        x[1, 100] = float("nan")
        found, expected = both(layer, x)
        assert torch.equal(found.isnan(), expected.isnan()) and bool(found[1].isnan().all())


def test_convolutions_are_the_reference() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Conv2d(8, 5, 3, stride=2, padding=1))
    images = [tensor(1, 8, 5, 5, seed=seed) for seed in range(3)]
    method = Method.of("own", "w8a8_dynamic", dualscale=True, convolutions=True)
    segquant.quantize_(model, method, images, {"0": Segments(activation="silu")})
    close(model[0], images[0])


def test_no_float_copy_of_the_weight_stays() -> None:
    for precision, most in (("w8a8", 1.1), ("w4a8", 0.7), ("w4a4", 0.7)):
        for negative in ("dual", "zero_point"):
            layer = layer_of(precision, Segments(activation="gelu"), (384, 256), negative=negative).to(DEVICE)
            layer.backend = Triton()
            packed = layer._ready()
            extra = packed.extra
            held = [*layer.buffers(), packed.weight_scale, extra.cuts, extra.table]
            held += [] if extra.sums is None else [extra.sums]
            found = {each.data_ptr(): each.nbytes for each in held if each.data_ptr() != layer.bias.data_ptr()}
            assert sum(found.values()) <= most * 384 * 256, (precision, negative)


def test_shapes_are_known_without_numbers() -> None:
    model: Any = nn.Sequential(nn.Linear(9, 5))
    segquant.quantize_(model, presets.rtn("w8a8"), [tensor(4, 9)])
    segquant.set_backend_(model.to(DEVICE), "triton")
    model(tensor(4, 9).to(DEVICE))
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert model(torch.empty(3, 7, 9, device=DEVICE)).shape == (3, 7, 5)


@pytest.mark.slow
def test_compilers_and_exporters_take_the_operator() -> None:
    """One graph, no second one for another batch, and the same numbers; rotated, with low-rank branches, static."""
    model: Any = nn.Sequential(nn.Linear(48, 32), nn.GELU(), nn.Linear(32, 64), nn.Linear(64, 48)).to(DEVICE)
    batches = [inputs(6, 48, seed=seed).to(DEVICE) for seed in range(3)]
    own = {"2": {"precision": "w4a8", "rank": 2}, "3": {"precision": "w8a8", "rotate": True}}
    segquant.quantize_(model, presets.segquant_a("w8a8_dynamic", alpha=0.5, overrides=own), batches)
    segquant.set_backend_(model, "triton")
    x, other = inputs(6, 48).to(DEVICE), inputs(9, 48).to(DEVICE)
    expected = model(x), model(other)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch._dynamo.mark_dynamic(x, 0)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        assert errors(compiled(x), expected[0])[1] < 1e-6 and errors(compiled(other), expected[1])[1] < 1e-6
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("rows")},))
    assert errors(program.module()(other), expected[1])[1] < 1e-6
