"""quantize_ end to end: order of the methods on fresh inputs, swapping, errors, determinism."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from segquant import (
    PRECISIONS,
    QuantizationError,
    QuantLinear,
    find_segments,
    layer_errors,
    model_weight_bytes,
    observe,
    output_error,
    output_errors,
    presets,
    quantize_,
)
from segquant.method.spec import Method
from tests.segquant.support import BLOCK_SEGMENTS, EACH_KIND, EIGHT, SUPER_BLOCKS, Block, block_batches, block_segments


def quantized(method: Method, model: nn.Module | None = None, count: int = 24) -> tuple[nn.Module, nn.Module]:
    model = model or Block()
    return model, quantize_(copy.deepcopy(model), method, block_batches(count, seed=1), BLOCK_SEGMENTS)


def errors(method: Method) -> tuple[float, float]:
    """Mean layer error and output error on fresh inputs."""
    model, found = quantized(method)
    held = block_batches(40, seed=2)
    layers = layer_errors(model, found, held)
    return sum(layers.values()) / len(layers), output_error(model, found, held)


SINCE = {"alpha_rows": "held_out", "alpha_none": True, "headroom": "search"}
"""As in segquant_plus: the published search, on the 48 rows that set the range of `ada`, finds what clips others."""


def test_segquant_leads_at_the_papers_eight_bits() -> None:
    methods = (presets.rtn(), presets.smoothquant(), presets.segquant_a(**SINCE), presets.segquant_plus())
    rtn, smooth, ours, with_gptq = map(errors, methods)
    assert ours[0] < 0.7 * min(rtn[0], smooth[0]) and ours[1] < 0.7 * min(rtn[1], smooth[1])
    assert with_gptq[0] < ours[0]


@pytest.mark.parametrize("precision", ["w8a8", "w8a8_dynamic", "w4a8_channel", "w4a8"])
def test_segquant_leads_rtn_everywhere(precision: str) -> None:
    rtn, ours = errors(presets.rtn(precision)), errors(presets.segquant_plus(precision, rank=4))
    assert ours[0] < rtn[0] and ours[1] < rtn[1]


def test_seglinear_and_dualscale_each_help() -> None:
    """At a fixed α, as in the paper's Table 4."""
    base, cut, dual, both = (
        errors(presets.segquant_a("w8a8_tensor", alpha=0.5, seglinear=s, dualscale=d))[0]
        for s, d in ((False, False), (True, False), (False, True), (True, True))
    )
    assert cut < base and dual < base and both < min(cut, dual)


SIX = ("rtn", "smoothquant", "gptq", "svdquant", "segquant_a", "segquant_g")


@pytest.mark.parametrize("name, precision", [
    (name, precision)
    for precision in PRECISIONS
    for name in (SIX if precision in EIGHT else ("gptq", "segquant_g") if precision in EACH_KIND else ("segquant_a",))
    if name != "smoothquant" or PRECISIONS[precision].input is not None  # which the preset refuses
])  # fmt: skip
def test_presets_at_every_precision(name: str, precision: str) -> None:
    extra = {"alpha": 0.5} if name[0] == "s" else {}
    extra |= {"rank": 4} if name[0] == "s" and name != "smoothquant" else {}
    width = 256 if precision in SUPER_BLOCKS else 64
    model = Block(width)
    calibration, segments = block_batches(5, seed=1, width=width), block_segments(width)
    method = getattr(presets, name)(precision, **extra)
    found = quantize_(copy.deepcopy(model), method, calibration, segments)
    assert all(isinstance(getattr(found, layer), QuantLinear) for layer in ("ada", "up", "down", "out"))
    held, narrow = block_batches(3, seed=2, width=width), method.scheme.weight.bits
    eight = "8a8" in precision or precision in ("fp8", "fp8_dynamic", "mxfp8", "mxint8", "w8a16", "q8_0")
    if narrow > 3:
        assert output_error(model, found, held) < (0.3 if eight else 1)
    else:  # whose errors add up over the layers to more than the signal; each layer by itself keeps most of it
        assert max(layer_errors(model, found, held).values()) < {2: 0.8, 3: 0.6}[narrow]
    share = model_weight_bytes(found) / model_weight_bytes(model)
    assert share < (0.65 if precision.startswith("w4") else 0.4 if precision in EIGHT else 0.5)


def test_graph_finds_the_segments_of_the_block() -> None:
    model, batch = Block(), block_batches(1, seed=1)[0]
    found = find_segments(model, (), batch)
    assert {name: (entry.output, entry.input, entry.activation) for name, entry in found.items()} == {
        name: (entry.output, entry.input, entry.activation) for name, entry in BLOCK_SEGMENTS.items()
    }
    method = presets.segquant_a("w8a8_tensor")
    given = quantized(method)[1]
    graph = quantize_(Block(), method, iter(block_batches(24, seed=1)))
    held = block_batches(1, seed=2)[0]
    assert torch.equal(given(**held), graph(**held))


def test_same_result_twice_and_from_shared_statistics() -> None:
    method, held = presets.segquant_g("w4a8", rank=4), block_batches(1, seed=2)[0]
    first, again = quantized(method)[1], quantized(method)[1]
    stats = observe(Block(), block_batches(24, seed=1), gram=True)
    reused = quantize_(Block(), method, [], BLOCK_SEGMENTS, stats=stats)
    assert torch.equal(first(**held), again(**held)) and torch.equal(first(**held), reused(**held))


def test_none_changes_nothing_and_rtn_weights_need_no_data() -> None:
    model = Block()
    assert quantize_(model, presets.none(), []) is model and isinstance(model.up, nn.Linear)
    quantize_(model, presets.rtn("w4a8"), [])
    assert isinstance(model.up, QuantLinear)


def test_skip_globs_and_shared_modules() -> None:
    model = Block()
    model.alias = model.up
    quantize_(model, presets.rtn("w8a8", skip=["o*", "ada"]), block_batches(2, seed=1))
    assert isinstance(model.out, nn.Linear) and isinstance(model.ada, nn.Linear)
    assert isinstance(model.up, QuantLinear) and model.alias is model.up
    with pytest.raises(QuantizationError, match=r"leaves out all 4"):
        quantize_(Block(), presets.rtn("w8a8", skip=["*"]), block_batches(1, seed=1))


def test_uncalled_linears(caplog: pytest.LogCaptureFixture) -> None:
    model = Block()
    model.spare = nn.Linear(32, 32)
    with pytest.raises(QuantizationError, match="never called spare; leave them out"):
        quantize_(model, presets.rtn("w8a8"), block_batches(2, seed=1), BLOCK_SEGMENTS)
    assert isinstance(model.up, nn.Linear), "nothing is half quantized"
    quantize_(model, presets.rtn("w8a8", on_uncalled="skip"), block_batches(2, seed=1), BLOCK_SEGMENTS)
    assert isinstance(model.spare, nn.Linear) and isinstance(model.up, QuantLinear)
    assert "spare" in caplog.text


def test_errors_leave_the_model_alone() -> None:
    model = Block(width=48)
    batches = block_batches(2, seed=1, width=48)
    with pytest.raises(QuantizationError, match="ada: weight groups of 32 do not divide"):
        quantize_(model, presets.rtn("w4a8"), batches)
    for method in (presets.rtn("w8a8"), presets.segquant_a("w8a8")):
        with pytest.raises(QuantizationError, match="no calibration batches"):
            quantize_(model, method, [])
    assert all(isinstance(child, nn.Linear) for child in model.children())


def test_bfloat16_model() -> None:
    model = Block().to(torch.bfloat16)
    batches = [{k: v.bfloat16() for k, v in batch.items()} for batch in block_batches(8, seed=1)]
    found = quantize_(copy.deepcopy(model), presets.segquant_g("w8a8_tensor"), batches, BLOCK_SEGMENTS)
    assert found(**batches[0]).dtype == torch.bfloat16 and found.up.weight_scale.dtype == torch.float32
    # no worse than the same weights in float32, apart from bfloat16's own rounding (2⁻⁹ a step)
    wide, inputs = copy.deepcopy(model).float(), [{k: v.float() for k, v in batch.items()} for batch in batches]
    single = quantize_(copy.deepcopy(wide), presets.segquant_g("w8a8_tensor"), inputs, BLOCK_SEGMENTS)
    assert output_error(model, found, batches) < output_error(wide, single, inputs) + 0.01


def test_progress_and_per_batch_errors() -> None:
    seen: list[tuple[str, int, int]] = []
    model, held = Block(), block_batches(3, seed=2)
    found = quantize_(copy.deepcopy(model), presets.rtn("w8a8"), block_batches(2, seed=1), BLOCK_SEGMENTS,
                      progress=lambda *args: seen.append(args))  # fmt: skip
    assert seen[0] == ("observe", 1, 2) and seen[-1] == ("quantize", 4, 4)
    per_batch = output_errors(model, found, held)
    assert len(per_batch) == 3 and min(per_batch) <= output_error(model, found, held) <= max(per_batch)


@torch.no_grad()
def test_measures_against_their_definition() -> None:
    model, found = quantized(presets.rtn("w8a8_tensor"))
    batch = block_batches(1, seed=2)[0]
    exact, approximate = model(**batch), found(**batch)
    assert output_error(model, found, [batch]) == pytest.approx(
        float((exact - approximate).norm() / exact.norm()), rel=1e-4
    )
    x = nn.functional.silu(batch["condition"])
    expected = float((found.ada(x) - model.ada(x)).norm() / model.ada(x).norm())
    assert layer_errors(model, found, [batch])["ada"] == pytest.approx(expected, rel=1e-4)
    with pytest.raises(QuantizationError, match="no batches"):
        output_error(model, found, [])
    with pytest.raises(QuantizationError, match="no linear"):
        layer_errors(nn.Sequential(), found, [])
