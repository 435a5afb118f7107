"""Layers of other people's tools: their bytes, and inputs out of the ordinary."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from segquant import output_error
from tests.pipelines.peers.support import peer


def test_bytes_of_a_layer_are_those_of_its_format() -> None:
    """Of 64 × 128 weights: codes, then scales, then what each tool adds."""
    layer = nn.Sequential(nn.Linear(128, 64, bias=False)).eval()
    count, batches = 64 * 128, [(torch.randn(40, 128),)]
    expected = {
        ("gguf", "q8_0"): count // 32 * 34,
        ("gguf", "q4_0"): count // 32 * 18,
        ("gguf", "q4_1"): count // 32 * 20,
        ("gguf", "q5_0"): count // 32 * 22,
        ("gguf", "q5_1"): count // 32 * 24,
        ("torchao_mx", "mxfp8"): count + count // 32,
        ("torchao_mx", "mxfp6"): count * 3 // 4 + count // 32,
        ("torchao_mx", "mxfp4"): count // 2 + count // 32,
        ("torchao_nvfp4", "nvfp4"): count // 2 + count // 16 + 4,
        ("torchao_fp8", "fp8_dynamic"): count + 64 * 4,
        ("torchao_intx", "w3a16"): count * 3 // 8 + count // 64 * 5,  # a zero point of one byte, always 0
        ("bnb_int8", "w8a8_dynamic"): count + 64 * 4 + 1,
        ("quanto", "w2a16"): count // 4 + count // 32 * 8 + 8,
        ("sdnq", "w2a16"): count // 4 + count // 32 * 8,
    }
    for (name, precision), size in expected.items():
        tool = peer(name, precision)
        assert tool.weight_bytes(tool.quantize_(copy.deepcopy(layer), batches), ["0"]) == size, (name, precision)
    for double_quant, scales in ((False, count // 64 * 4), (True, count // 64 + 4 + 4 * 256)):
        tool = peer("bnb_nf4", "w4a16_nf4", double_quant=double_quant)
        size = tool.weight_bytes(tool.quantize_(copy.deepcopy(layer), batches), ["0"])
        assert 0 < size - (count // 2 + scales + 16 * 4) < 200  # the rest is its record of shapes, in JSON


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sdnqs_factors_are_counted_at_16_bits(dtype: torch.dtype) -> None:
    """On a 16-bit model SDNQ stores them so; on one of float32 they would weigh twice what it is about."""
    layer = nn.Sequential(nn.Linear(128, 64, bias=False)).eval().to(dtype)
    sizes = []
    for options in ({}, {"svd": True, "rank": 8}):
        tool = peer("sdnq", "w4a8", **options)
        made = tool.quantize_(copy.deepcopy(layer), [(torch.randn(40, 128, dtype=dtype),)])
        sizes.append(tool.weight_bytes(made, ["0"]))
        assert {made[0].svd_up.dtype, made[0].svd_down.dtype} == {dtype} if options else made[0].svd_up is None
    assert sizes[1] - sizes[0] == 2 * 8 * (128 + 64)
    assert sizes[0] == 64 * 128 // 2 + 64 * 128 // 32 * 8, "float32 scales and zero points for groups of 32"


OWN_INPUTS = (
    ("torchao_mx", "mxfp8"), ("torchao_mx", "mxfp4"), ("torchao_nvfp4", "nvfp4"), ("torchao_fp8", "fp8_dynamic"),
    ("bnb_int8", "w8a8_dynamic"), ("bnb_nf4", "w4a16_nf4"), ("gguf", "q4_0"),
)  # fmt: skip


@pytest.mark.parametrize(("name", "precision"), OWN_INPUTS)
def test_inputs_of_zeros_and_of_any_strides(name: str, precision: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32)).eval()
    x = torch.randn(64, 5, 3).transpose(0, 2)
    quantized = peer(name, precision).quantize_(copy.deepcopy(model), [(x,)])
    with torch.no_grad():
        assert torch.equal(quantized(torch.zeros(2, 64)), model[0].bias.expand(2, 32))
        found = quantized(x)
        torch.testing.assert_close(found, quantized(x.contiguous()))
    assert found.shape == (3, 5, 32) and output_error(model, quantized, [(x,)]) < 0.25


def test_channels_beyond_the_threshold_stay_floats() -> None:
    """Of LLM.int8: an outlier spoils its row's scale, unless its channel is left out."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 64)).eval()
    batch = torch.randn(40, 128)
    batch[:, 7] = 100.0
    errors = []
    for threshold in (6.0, 0.0):
        tool = peer("bnb_int8", "w8a8_dynamic", threshold=threshold)
        errors.append(output_error(model, tool.quantize_(copy.deepcopy(model), [(batch,)]), [(batch,)]))
    assert errors[0] < 0.25 * errors[1]
