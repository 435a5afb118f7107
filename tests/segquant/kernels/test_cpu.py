"""The `cpu` backend against the reference, and its integers against int64."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as nnf

import segquant
from segquant import Method, QuantizationError, QuantScheme, QuantSpec, Segments, presets
from segquant.kernels.cpu import operators
from segquant.kernels.cpu.backend import Cpu
from segquant.layers.layer import QuantLayer
from tests.segquant.kernels.layouts import (
    CUTS,
    FLOATS,
    FORMATS,
    METHODS,
    PRECISIONS,
    assert_close,
    both_of,
    errors,
    inputs,
    layer_of,
)
from tests.segquant.support import BLOCK_SEGMENTS, Block, block_batches, tensor

REASON = operators.why_not_exact()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"the cpu backend {REASON}")


def both(layer: QuantLayer, x: Tensor) -> tuple[Tensor, Tensor]:
    return both_of(Cpu(), layer, x)


def close(layer: QuantLayer, x: Tensor) -> None:
    assert_close(layer, *both(layer, x))


@pytest.mark.parametrize("precision", [*PRECISIONS, *FLOATS])
def test_every_layout_is_the_reference(precision: str) -> None:
    scheme = (PRECISIONS | FLOATS)[precision]
    for cut, (name, method) in itertools.product(CUTS.values(), METHODS.items()):
        if precision in ("w8a16", "fp8a16") and "svd" in name:
            continue
        layer = layer_of(scheme, cut, **method)
        assert Cpu().why_not(layer.layout, torch.device("cpu")) is None
        close(layer, inputs(11, 384))


@pytest.mark.parametrize("precision", FORMATS)
def test_every_width_is_the_reference(precision: str) -> None:
    for cut, name in itertools.product(("dual", "mixed"), ("smooth", "rotated_svd")):
        layer = layer_of(FORMATS[precision], CUTS[cut], **METHODS[name])
        assert Cpu().why_not(layer.layout, torch.device("cpu")) is None
        close(layer, inputs(11, 384))


@pytest.mark.parametrize("precision", ["w8a8_tensor", "w8a8_dynamic", "w4a8", "w4a4", "dynamic_tensor"])
def test_every_form_for_engines_is_the_reference(precision: str) -> None:
    scheme = PRECISIONS[precision]
    negatives = ("zero_point", "shift") if precision == "w8a8_tensor" else ("zero_point",)
    for negative, columns in itertools.product(negatives, ("pieces", "fold")):
        for cut, name in itertools.product(("dual", "mixed"), ("rtn", "smooth", "svd")):
            method = {"negative": negative, "columns": columns, **METHODS[name]}
            close(layer_of(scheme, CUTS[cut], **method), inputs(11, 384) + 1)


@pytest.mark.parametrize("precision", ["w8a8", "w8a8_dynamic", "w4a8", "w4a16", "fp8", "fp8_dynamic"])
def test_every_shape_of_input_is_the_reference(precision: str) -> None:
    layer = layer_of(precision, CUTS["mixed"], **METHODS["svd"] if precision == "w4a8" else METHODS["smooth"])
    for x in (
        inputs(384), inputs(1, 384), inputs(0, 384), inputs(2, 7, 384), inputs(2, 3, 5, 384),
        inputs(384, 9).T, inputs(4, 768)[:, ::2], inputs(6, 384).bfloat16(), inputs(2, 0, 384), torch.zeros(3, 384),
    ):  # fmt: skip
        close(layer, x) if x.numel() else both(layer, x)
    found, expected = both(layer, inputs(5, 384).half())
    assert found.dtype == torch.float16 and errors(found, expected)[1] < 2e-3
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        close(layer, inputs(3, 384))


def test_sizes_that_nothing_divides() -> None:
    for columns, outputs in itertools.product((1, 3, 31, 97), (1, 15, 17)):
        for precision in ("w8a8", "w4a8_channel", "w6a6", "fp8", QuantScheme(QuantSpec("int3", "channel"), None)):
            close(layer_of(precision, Segments(), (columns, outputs)), tensor(7, columns))


@pytest.mark.parametrize("inputs_bits", [8, 7, 6, 5, 4, 3, 2])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("signs", ["one", "dual", "zero"])
def test_integers_are_exact(bits: int, signs: str, inputs_bits: int) -> None:
    """Any codes, the largest together too, and beyond the grid: scales of one, compared in int64."""
    low, least = -(2 ** (bits - 1)), -(2 ** (inputs_bits - 1))
    dual, zero = int(signs != "one"), 2**inputs_bits - 1 if signs == "zero" else -least
    generator = torch.Generator().manual_seed(0)
    for columns, rows, outputs in ((1, 1, 1), (65, 13, 19), (2050, 6, 16)):
        weight = torch.randint(low, -low, (outputs, columns), generator=generator, dtype=torch.int8)
        values = torch.randint(2 * least - 3, 4 - 2 * least, (rows, columns), generator=generator)
        weight[0], values[0] = low, 2 * least
        codes = values.clamp(-zero, 2**inputs_bits - 1 - zero)
        stored = weight if bits == 8 else segquant.numerics.functional.pack_int4(weight)
        shape = ([outputs], [columns], [dual], [columns], bits, inputs_bits, signs == "zero")
        scale = torch.ones(1, 1)
        own = (scale if signs == "dual" else None, scale * zero if signs == "zero" else None)
        found = operators.linear(
            values.float(), stored, torch.ones(outputs, 1), *(None,) * 4, [], None, scale, *own, *shape
        )
        assert torch.equal(found, (codes.long() @ weight.long().T).float())


REFUSED = {
    "w4a16_nf4": "multiplies integers or fp8, and nf4 is neither",
    "nvfp4": "multiplies integers or fp8, and fp4_e2m1 is neither",
    "mxfp8": "takes scales of inputs in float32, and these are e8m0",
    "mxfp6": "multiplies integers or fp8, and fp6_e2m3 is neither",
    "mxfp4": "multiplies integers or fp8, and fp4_e2m1 is neither",
    "mxint8": "takes scales of inputs in float32, and these are e8m0",
    "w8a8_asym": "multiplies integers of a signed byte, which uint8 less its zero point exceeds; use int8",
    "q4_1": "multiplies signed integers, and uint4 with scale_dtype 'q1' counts from a least value; int4 is the "
    "nearest",
}


def test_every_precision_runs_or_is_refused_by_name() -> None:
    """Those with signed integers or fp8 run; which do not is said, and which is the nearest."""
    for name in segquant.PRECISIONS:
        layer = layer_of(name, Segments(), (512, 8))
        reason = Cpu().why_not(layer.layout, torch.device("cpu"))
        if name in ("q5_1", "q2_k", "q4_k", "q5_k"):
            assert reason is not None and "counts from a least value; int" in reason
        else:
            assert reason == REFUSED.get(name), name
        if reason is None:
            close(layer, inputs(3, 512))


def test_what_is_no_number_spreads_over_its_row() -> None:
    for precision in ("w8a8", "w8a8_dynamic", "w4a8", "w4a4", "fp8", "fp8_dynamic"):
        layer, x = layer_of(precision, CUTS["mixed"]), inputs(4, 384)
        x[1, 300] = float("nan")
        found, expected = both(layer, x)
        assert torch.equal(found.isnan(), expected.isnan()) and bool(found[1].isnan().all())


CONVOLUTIONS: dict[str, Callable[[], nn.Conv2d]] = {
    "padded": lambda: nn.Conv2d(8, 19, 3, padding=1),
    "strided": lambda: nn.Conv2d(8, 19, 3, stride=2, padding=(2, 0), dilation=(1, 2), bias=False),
    "same": lambda: nn.Conv2d(8, 19, (2, 3), padding="same", padding_mode="reflect"),
    "point": lambda: nn.Conv2d(32, 19, 1),
    "dilated": lambda: nn.Conv2d(8, 3, 3, padding=2, dilation=2),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("precision", [
    "w8a8_tensor", "w8a8_dynamic", "w4a8_channel", "w4a16", "dynamic_tensor", "fp8", "fp8_dynamic", "fp8_tensor",
    "fp8a16",
])  # fmt: skip
def test_convolutions_are_the_reference(kind: str, precision: str) -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(CONVOLUTIONS[kind]())
    scheme = (PRECISIONS | FLOATS)[precision]
    if precision == "w4a16":
        scheme = QuantScheme(QuantSpec("int4", "group", 8), None)
    channels = model[0].in_channels
    images = [tensor(2, channels, 9, 7, seed=seed) for seed in range(3)]
    svd = {"optimizer": "svd", "alpha": 0.5, "rank": 2} if precision == "w4a8_channel" else {}
    method = Method.of("own", scheme, dualscale=True, convolutions=True, **svd)
    segquant.quantize_(model, method, images, {"0": Segments(activation="silu")})
    for x in (images[0], images[1][0], images[2].bfloat16(), images[0].to(memory_format=torch.channels_last)):
        close(model[0], x)


@pytest.mark.parametrize("scheme", [
    "w8a8_tensor", "w8a8_dynamic", "w4a8_channel", "fp8", "fp8_dynamic",
    QuantScheme(QuantSpec("fp8", "group", 12), QuantSpec("fp8", "group", 12, dynamic=True)),  # across taps
    QuantScheme(QuantSpec("int4", "group", 12), QuantSpec("int8", "token", dynamic=True)),  # across taps
    QuantScheme(QuantSpec("int4", "group", 8), QuantSpec("int4", "group", 8, dynamic=True)),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", ["rtn", "smooth", "svd"])
def test_convolutions_in_pieces_are_the_reference(scheme: Any, name: str) -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Conv2d(16, 19, (3, 3), padding=1))
    images = [tensor(2, 16, 5, 6, seed=seed) * torch.linspace(0.1, 4, 16).view(16, 1, 1) for seed in range(3)]
    cuts = Segments(input=(12, 4), input_activations=("silu", None), output=(9, 10))
    method = Method.of("own", scheme, seglinear=True, dualscale=True, convolutions=True, **METHODS[name])
    segquant.quantize_(model, method, images, {"0": cuts})
    for x in images:
        close(model[0], x)


@pytest.mark.parametrize(("precision", "negative"), [("w8a8", "dual"), ("w8a8", "zero_point"), ("fp8", "dual")])
@pytest.mark.parametrize("channels", [35, 48])
def test_images_of_codes_are_the_reference(channels: int, precision: str, negative: str) -> None:
    """Blocks of channels and pixels with and without a rest; windows of more taps than a register's bytes."""
    torch.manual_seed(0)
    for kernel, padding, size in ((3, 1, (3, 19)), (5, (1, 4), (6, 16)), (1, 0, (2, 33))):
        model: Any = nn.Sequential(nn.Conv2d(channels, 70, kernel, padding=padding))
        images = [tensor(2, channels, *size, seed=seed) + 0.3 for seed in range(2)]
        method = presets.segquant_a(precision, alpha=0.5, convolutions=True, negative=negative)
        segquant.quantize_(model, method, images, {"0": Segments(input=(32, channels - 32), activation="silu")})
        for x in images:
            close(model[0], x)


@pytest.mark.parametrize("precision", ["w8a8", "fp8", "fp8_dynamic"])
def test_a_pixel_that_is_no_number_spreads_over_its_patches(precision: str) -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Conv2d(16, 5, 3, padding=1))
    x = tensor(2, 16, 7, 8)
    segquant.quantize_(model, presets.rtn(precision, convolutions=True), [x.clone()])
    x[1, 3, 2, 4] = float("nan")
    found, expected = both(model[0], x)
    assert torch.equal(found.isnan(), expected.isnan()) and int(found.isnan().sum()) == 5 * 9
    most = 0 if precision == "w8a8" else 1e-6  # squares of floats, where there are such, take finite numbers alone
    assert errors(both(model[0], x.nan_to_num())[0][0], found[0])[1] <= most


@pytest.mark.parametrize(("shape", "outputs", "padding"), [
    ((2, 32, 9, 7), 70, 1),  # squares over both ends
    ((1, 48, 8, 10), 64, 0),
    ((1, 16, 6, 41), 5, (2, 1)),
    ((1, 16, 42, 43), 3, 1),  # more squares than are multiplied at once
    ((1, 1280, 8, 8), 3, 1),  # long sums
])  # fmt: skip
def test_squares_of_float_convolutions_are_exact(shape: tuple[int, ...], outputs: int, padding: Any) -> None:
    """Winograd's products err no more than twice as much as torch's, by float64; what is no number spreads as there."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Conv2d(shape[1], outputs, 3, padding=padding))
    x = tensor(*shape)
    segquant.quantize_(model, presets.rtn("w4a16", convolutions=True), [x])
    weight, bias = model[0].weight.double(), model[0].bias.double()
    exact = nn.functional.conv2d(x.double(), weight.reshape(outputs, shape[1], 3, 3), bias, padding=padding)
    found, expected = both(model[0], x)
    torch_errs, errs = ((each - exact).abs() for each in (expected, found))
    assert errs.median() <= 2 * torch_errs.median() and errs.max() <= 4 * torch_errs.max()
    close(model[0], x.bfloat16())
    for value in (float("nan"), float("inf")):
        x[0, 3, 2, 4] = value
        found, expected = both(model[0], x)
        assert torch.equal(found.isfinite(), expected.isfinite()) and torch.equal(found.isnan(), expected.isnan())


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["-mno-avx512f", "-mno-avx512f -DSEGQUANT_BYTES", "-DSEGQUANT_FLOATS"])
def test_other_instructions_are_the_reference(flags: str, tmp_path: Path) -> None:
    """What processors run without AVX-512 and VNNI, with AVX-VNNI (without its instruction), without bfloat16."""
    own = {"SEGQUANT_CACHE": str(tmp_path), "CXXFLAGS": flags, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not slow", __file__]
    done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert " passed" in done.stdout and len(list(tmp_path.glob("cpu-*.so"))) == 1


def test_threads_change_no_bit() -> None:
    before = torch.get_num_threads()
    layers = [layer_of(precision, CUTS["mixed"]) for precision in ("w8a8", "w4a8", "fp8")]
    x, image = inputs(300, 384), tensor(2, 48, 9, 17)
    model: Any = nn.Sequential(nn.Conv2d(48, 70, 3, padding=1))
    plain = copy.deepcopy(model)
    segquant.quantize_(model, presets.rtn("w8a8", convolutions=True), [image])
    segquant.quantize_(plain, presets.rtn("w4a16", convolutions=True), [image])
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            convolved = [both(each[0], image)[0] for each in (model, plain)]
            found.append([*(both(layer, x)[0] for layer in layers), *convolved])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@pytest.mark.parametrize(("precision", "rank", "most"), [
    *[(precision, 0, 1.1) for precision in ("w8a8_tensor", "w8a8", "w8a8_dynamic", "q8_0", "fp8", "fp8_dynamic")],
    *[(precision, rank, 0.7) for precision in ("w4a8_channel", "w4a8", "w4a4", "w4a16", "q4_0") for rank in (0, 16)],
])  # fmt: skip
def test_no_float_copy_of_anything_stays(precision: str, rank: int, most: float) -> None:
    """Of weights, scales and branches; also once it ran: what its tensors take is all it holds."""
    branch: dict[str, Any] = {"optimizer": "svd", "alpha": 0.5, "rank": rank} if rank else {}
    layer = layer_of(precision, Segments(), (512, 1024), **branch)
    layer.backend = Cpu()
    layer(inputs(2, 512))
    assert layer.bias is not None
    assert layer.held_bytes() == pytest.approx(layer.weight_bytes(), rel=0.01)  # one scale is spread over all rows
    assert layer.held_bytes() - layer.bias.nbytes <= most * 512 * 1024


def test_held_bytes_count_what_was_packed_once() -> None:
    layer = layer_of("w6a6", Segments(), (384, 256))
    layer.backend = Cpu()
    assert layer.held_bytes() == layer.weight_bytes()
    layer(inputs(2, 384))
    spread = layer._packed.codes
    assert spread.nbytes == 384 * 256 and layer.held_bytes() == layer.weight_bytes() + spread.nbytes
    layer.forget_packed()
    assert layer.held_bytes() == layer.weight_bytes()


def test_the_model_loses_nothing_and_packs_again() -> None:
    model, batches = Block(), block_batches(6, seed=1)
    segquant.quantize_(model, presets.segquant_g("w8a8", alpha=0.5), batches, BLOCK_SEGMENTS)
    expected = segquant.output_error(Block(), model, batches)
    table = segquant.set_backend_(model, "cpu")
    assert [(each.backend, each.reason) for each in table] == [("cpu", "")] * 4
    assert segquant.output_error(Block(), model, batches) == pytest.approx(expected, rel=0.03)
    before = model(**batches[0])
    twin = copy.deepcopy(model).to(torch.float32)
    assert torch.equal(twin(**batches[0]), before)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(**batches[0]), before)


def test_gradients_reach_adapters_before_a_layer() -> None:
    model: Any = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1))
    images = [tensor(1, 4, 5, 5)]
    segquant.quantize_(model, presets.rtn("w8a8", convolutions=True), images)
    segquant.set_backend_(model, "cpu")
    x = images[0].clone().requires_grad_()
    model(x).sum().backward()
    assert x.grad is not None and errors(model(x).detach(), model(x.detach()))[1] < 1e-6


WHY = "multiplies integers or fp8, and fp8_e5m2 is neither"


def test_auto_says_what_runs_a_layer(capsys: pytest.CaptureFixture[str]) -> None:
    model, batches = Block(), block_batches(4, seed=1)
    e5m2 = QuantSpec("fp8_e5m2", "tensor")
    mixed = presets.rtn("w8a8", overrides={"down": {"precision": QuantScheme(e5m2, e5m2)}})
    segquant.quantize_(model, mixed, batches)
    table = segquant.set_backend_(model, "auto")
    reasons = {each.layer: (each.backend, each.reason) for each in table}
    assert reasons["down"] == ("reference", WHY) and reasons["up"] == ("cpu", "")
    assert capsys.readouterr().out.splitlines()[0].split() == ["layer", "layers", "backend", "reason"]
    with pytest.raises(QuantizationError, match=rf"'auto' cannot run down \({WHY}\); "):
        segquant.set_backend_(model, "auto", strict=True)


def test_shapes_are_known_without_numbers() -> None:
    model: Any = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, dilation=2), nn.Flatten(2), nn.Linear(9, 5))
    images = [tensor(1, 4, 9, 9)]
    segquant.quantize_(model, presets.rtn("w8a8", convolutions=True), images)
    segquant.set_backend_(model, "cpu")
    model(images[0])
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = model(torch.empty(3, 4, 9, 9))
    assert fake.shape == (3, 6, 5) == model(tensor(3, 4, 9, 9)).shape


@pytest.mark.slow
def test_compilers_and_exporters_take_the_operators() -> None:
    """One graph, no second one for another batch, and the same numbers; rotated, with low-rank branches, static."""
    model: Any = nn.Sequential(nn.Linear(48, 32), nn.GELU(), nn.Linear(32, 64), nn.Linear(64, 48))
    batches = [inputs(6, 48, seed=seed) for seed in range(3)]
    own = {"0": {"precision": "fp8"}, "2": {"precision": "w4a8", "rank": 2}, "3": {"precision": "w8a8", "rotate": True}}
    segquant.quantize_(model, presets.segquant_a("w8a8_dynamic", alpha=0.5, overrides=own), batches)
    segquant.set_backend_(model, "cpu")
    x, other = inputs(6, 48), inputs(9, 48)
    expected = model(x), model(other)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch._dynamo.mark_dynamic(x, 0)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        assert errors(compiled(x), expected[0])[1] < 1e-6 and errors(compiled(other), expected[1])[1] < 1e-6
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("rows")},))
    assert errors(program.module()(other), expected[1])[1] < 1e-6


@pytest.mark.parametrize("change", ["none", "copied", "pickled", "moved", "loaded", "assigned"])
def test_a_second_batch_size_is_not_compiled_again(change: str) -> None:
    model: Any = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 16))
    segquant.quantize_(model, presets.rtn("w8a8_dynamic"), [inputs(6, 16)])
    segquant.set_backend_(model, "cpu")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if change in ("copied", "pickled"):
        model = copy.deepcopy(model) if change == "copied" else pickle.loads(pickle.dumps(model))
    elif change == "moved":
        model.to(torch.bfloat16).to(torch.float32)
    elif change in ("loaded", "assigned"):
        model.load_state_dict(state, assign=change == "assigned")
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (9, 5, 7):
            x = inputs(rows, 16)
            assert torch.equal(compiled(x), model(x))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_no_size_of_a_layer_is_taken_for_the_batch(backend: str) -> None:
    """First batches as large as its outputs, inputs, ranks and branches."""
    method = {"optimizer": "svd", "alpha": 0.5, "rank": 5}
    layers = [(layer_of("w4a8", Segments(), (64, 33)), (33, 64, 9)),
              (layer_of("w4a8", Segments(), (64, 33), **method), (5, 9, 10)),
              (layer_of("w4a8", Segments(output=(13, 20)), (64, 33), **method), (2, 9, 10))]  # fmt: skip
    for layer, counts in layers:
        model = nn.Sequential(layer)
        segquant.set_backend_(model, backend)
        model(inputs(7, 64))
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
        with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
            for rows in counts:
                x = inputs(rows, 64)
                assert torch.equal(compiled(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_to_a_bias_holds(dtype: torch.dtype) -> None:
    model = nn.Sequential(layer_of("w4a8", Segments(), (64, 33))).to(dtype)
    segquant.set_backend_(model, "cpu")
    x = inputs(6, 64).to(dtype)
    before = model(x).float()
    model[0].bias.data.add_(8.0)  # which no version counts
    assert (model(x).float() - before).mean() == pytest.approx(8.0, abs=0.05)


def test_another_backend_packs_anew() -> None:
    layer = layer_of("w4a8", Segments(), (64, 33))
    x = inputs(6, 64)
    expected = layer(x)
    layer.backend = Cpu()
    assert errors(layer(x), expected)[1] < 1e-6


def test_a_fallback_is_another_backend() -> None:
    model = nn.Sequential(layer_of("w4a8", Segments(), (64, 33)))
    with pytest.raises(QuantizationError, match="fallback='cpu' is the backend itself; name another"):
        segquant.set_backend_(model, "cpu", "cpu")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_inputs_of_other_shapes_are_refused(backend: str) -> None:
    """The kernel would cut rows otherwise: 5 rows of 130 are 10 of 65."""
    method = presets.rtn("w8a8_dynamic", convolutions=True)
    linear: Any = segquant.quantize_(nn.Sequential(nn.Linear(65, 31)), method, [inputs(6, 65)])
    convolution: Any = segquant.quantize_(nn.Sequential(nn.Conv2d(4, 6, 3)), method, [tensor(1, 4, 9, 9)])
    model = nn.Sequential(linear, convolution)
    segquant.set_backend_(model, backend)
    for shape in ((5, 130), (65, 64), (2, 30), ()):
        with pytest.raises(QuantizationError, match=r"takes \[..., 65\]"):
            model[0](torch.zeros(shape))
    for shape in ((2, 8, 9, 9), (2, 4, 0, 8), (4, 9), (1, 1, 4, 9, 9)):
        with pytest.raises(QuantizationError, match=r"takes \[batch, 4, height, width\]"):
            model[1](torch.zeros(shape))
    assert model[0](torch.zeros(65)).shape == (31,) and model[1](torch.zeros(0, 4, 9, 9)).shape == (0, 6, 7, 7)


@pytest.mark.parametrize(("precision", "negative"), [
    ("w8a8_dynamic", "dual"), ("w8a8_dynamic", "zero_point"), ("fp8_dynamic", "dual"),
])  # fmt: skip
def test_an_infinite_input_is_no_number_by_any_backend(precision: str, negative: str) -> None:
    """With scales of its row: neither the definition nor the kernel makes finite numbers of it."""
    x = inputs(4, 16)
    x[1, 3], x[2, 5] = torch.inf, -torch.inf
    model: Any = nn.Sequential(nn.GELU(), nn.Linear(16, 8))
    method = presets.rtn(precision, dualscale=True, negative=negative)
    segquant.quantize_(model, method, [inputs(6, 16)])
    found = {}
    for backend in ("reference", "cpu"):
        segquant.set_backend_(model, backend)
        found[backend] = model[1](x).isfinite().all(1).tolist()
    assert found == dict.fromkeys(found, [True, False, False, True])


def gelu(x: Tensor) -> Tensor:
    """The operator's, of [rows, 64]: floats times the identity."""
    size = x.shape[1]
    identity = torch.eye(size, dtype=torch.int8), torch.ones(size, 1)
    made: Tensor = operators.linear_gelu(
        x, *identity, *[None] * 4, [], *[None] * 4, [size], [size], [0], [size], 8, 0, False
    )
    return made


def test_gelu_is_that_of_float64() -> None:
    large = torch.logspace(-38, 38, 64 * 20)
    x = torch.cat([torch.linspace(-14, 14, 64 * 500), large, -large]).reshape(-1, 64)
    found, expected = gelu(x).double(), nnf.gelu(x.double(), approximate="tanh")
    assert float(((found - expected).abs() / x.double().abs()).max()) < 2e-7  # torch's float32: 1.1e-7
    assert bool((found.sign() * x.sign() >= 0).all())


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 0.0, -0.0, 3e38, -3e38])
def test_gelu_of_numbers_that_are_none_is_torchs(value: float) -> None:
    x = torch.full((1, 64), 0.0)
    bias = torch.full((64,), value)
    size, one = 64, torch.ones(64, 1)
    found = operators.linear_gelu(
        x, torch.eye(size, dtype=torch.int8), one, bias, *[None] * 3, [], *[None] * 4, [size], [size], [0], [size],
        8, 0, False,
    )  # fmt: skip
    assert torch.equal(found.nan_to_num(7.0), nnf.gelu(bias, approximate="tanh").expand(1, 64).nan_to_num(7.0))
