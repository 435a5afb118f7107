"""Formats and schemes: what they are called, what they refuse and in which words."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from segquant import PRECISIONS, QuantScheme, QuantSpec
from segquant.numerics.formats import DTYPES
from segquant.numerics.layout import Layout

GROUP = {"granularity": "group", "group_size": 32}
TOKEN = QuantSpec("int8", "token", dynamic=True)


def one_sentence(message: str) -> bool:
    """One line that ends without a full stop, as all of the library's, or with what a caller gave."""
    return "\n" not in message and not message.endswith(".") and len(message) > 20


@pytest.mark.parametrize("values, said", [
    ({"dtype": "int9"}, "no dtype 'int9': integers have 2 to 8 bits; choose int2 … int8 or uint2 … uint8"),
    ({"dtype": "int1"}, "no dtype 'int1': integers have 2 to 8 bits"),
    ({"dtype": "uint16"}, "no dtype 'uint16': integers have 2 to 8 bits"),
    ({"dtype": "fp8_e4m4"}, "unknown dtype 'fp8_e4m4'; nearest: fp8_e5m2"),
    ({"dtype": "fp4"}, "unknown dtype 'fp4'; nearest: .*fp4_e2m1"),
    ({"dtype": 4}, "QuantSpec: dtype is 4; give a string"),
    ({"dtype": "int8", "granularity": "chanel"}, "unknown granularity 'chanel'; nearest: channel"),
    ({"dtype": "int8", "scale_dtype": "bf16"}, "unknown scale_dtype 'bf16'; nearest: .*bfloat16"),
    ({"dtype": "int4", "granularity": "group"}, "granularity 'group' with group_size=None; give a group_size with"),
    ({"dtype": "int4", "group_size": 32}, "granularity 'tensor' with group_size=32; give a group_size with"),
    ({"dtype": "int4", "granularity": "group", "group_size": 0}, "group_size must be at least 1, not 0"),
    ({"dtype": "fp8", "symmetric": False}, "fp8 has no zero point; leave symmetric out, or choose uint8"),
    ({"dtype": "fp6_e3m2", "symmetric": False}, "fp6_e3m2 has no zero point; leave symmetric out, or choose uint6"),
    ({"dtype": "nf4", "symmetric": False}, "nf4 has no zero point; leave symmetric out, or choose uint4"),
    ({"dtype": "uint5", "symmetric": True}, "uint5 has a zero point; leave symmetric out, or choose int5"),
    ({"dtype": "fp4_e2m1", "scale_dtype": "k6", **GROUP},
     "scale_dtype 'k6' goes with integers, not with fp4_e2m1; choose float16"),
    ({"dtype": "nf4", "scale_dtype": "q0", **GROUP}, "scale_dtype 'q0' goes with integers, not with nf4; choose"),
    ({"dtype": "uint4", "scale_dtype": "q0", **GROUP}, "scale_dtype 'q0' does not go with uint4; choose 'q1'"),
    ({"dtype": "int4", "scale_dtype": "q1", **GROUP}, "scale_dtype 'q1' does not go with int4; choose 'q0'"),
    ({"dtype": "int4", "scale_dtype": "k6", "granularity": "channel"},
     "scale_dtype 'k6' needs granularity 'group' and a group_size that divides 256"),
    ({"dtype": "int4", "scale_dtype": "k8", "granularity": "group", "group_size": 48},
     "scale_dtype 'k8' needs granularity 'group' and a group_size that divides 256"),
])  # fmt: skip
def test_formats_that_there_are_not(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}") as refused:
        QuantSpec(**values)
    assert one_sentence(str(refused.value))


@pytest.mark.parametrize("weight, inputs, said", [
    (TOKEN, None, "a weight is quantized once: granularity 'token' and dynamic=True are for inputs"),
    (QuantSpec("int8", dynamic=True), None, "a weight is quantized once"),
    (None, QuantSpec("int8"), "a quantized input needs a quantized weight; give weight a QuantSpec"),
    (QuantSpec("int8"), QuantSpec("int8", "channel"),
     "per-channel inputs cannot be taken out of the product; use tensor, token or group"),
    (QuantSpec("int8"), QuantSpec("int8", "token"),
     "granularity 'token' of an input is only known at run time; set dynamic=True"),
    (QuantSpec("int8"), QuantSpec("int8", "group", 32),
     "granularity 'group' of an input is only known at run time; set dynamic=True"),
    *((QuantSpec("int8"), QuantSpec("int8", "group", 32, dynamic=True, scale_dtype=kept),
       f"scale_dtype '{kept}' is for weights; inputs take float32, bfloat16, float16, e8m0, e4m3")
      for kept in ("q0", "k4", "k6", "k8")),
    (QuantSpec("int8"), QuantSpec("uint8", dynamic=True, scale_dtype="q1"), "scale_dtype 'q1' is for weights"),
    (QuantSpec("int8"), QuantSpec("int8", scale_dtype="e4m3"),
     "scale_dtype 'e4m3' is for scales that share a second one, and a static input has one scale a piece"),
])  # fmt: skip
def test_layers_that_there_are_not(weight: QuantSpec | None, inputs: QuantSpec | None, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}") as refused:
        QuantScheme(weight, inputs)
    assert one_sentence(str(refused.value))


@pytest.mark.parametrize("values, said", [
    ({"weights": {"dtype": "int8"}}, "QuantScheme has no field 'weights'; nearest: weight"),
    ({"weight": {"dtype": "int8", "granularty": "token"}}, "QuantSpec has no field 'granularty'; nearest: granularity"),
    ({"weight": {"granularity": "channel"}}, "the weight format .* has no dtype; known: .*int2, .*nf4"),
    ({"weight": {"dtype": "int4"}, "input": {"dtype": "int7.5"}}, "unknown dtype 'int7.5'; nearest: int"),
    ([], "QuantScheme.from_dict"),
])  # fmt: skip
def test_fields_that_there_are_not(values: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        QuantScheme.from_dict(values)
    assert one_sentence(str(refused.value))


@pytest.mark.parametrize("dtype", DTYPES)
def test_symmetry_is_what_the_dtype_says(dtype: str) -> None:
    unsigned = dtype[0] == "u"
    spec = QuantSpec(dtype)
    assert spec.zero_point == unsigned and spec.symmetric is not unsigned
    assert QuantSpec(dtype, symmetric=not unsigned) == spec
    assert spec.bits == int(dtype[2] if dtype[:2] in ("fp", "nf") else dtype.strip("uint"))
    if dtype[:3] == "int":
        assert QuantSpec(dtype, symmetric=False) == QuantSpec(f"u{dtype}")


def test_one_format_under_two_names() -> None:
    assert QuantSpec("fp8_e4m3") == QuantSpec("fp8") and QuantSpec("fp8_e4m3").dtype == "fp8"


@pytest.mark.parametrize("name", PRECISIONS)
def test_schemes_are_read_as_they_are_written(name: str) -> None:
    scheme = PRECISIONS[name]
    written = json.loads(json.dumps(scheme.to_dict()))
    assert QuantScheme.from_dict(written) == scheme
    first = {"dtype", "granularity", "group_size", "dynamic"}
    for side, spec in (("weight", scheme.weight), ("input", scheme.input)):
        if spec is not None:  # files of older versions and of this one say float32 alike
            assert set(written[side]) == first | ({"scale_dtype"} if spec.scale_dtype != "float32" else set())


def test_what_the_names_stand_for() -> None:
    weight = {name: scheme.weight for name, scheme in PRECISIONS.items()}
    assert QuantSpec("int4", "group", 32) == weight["w4a8"]
    # OCP Microscaling Formats 1.0, table 1, and NVIDIA's NVFP4: size of a block, its elements and its scale
    for name, dtype, size, kept in (
        ("mxfp8", "fp8", 32, "e8m0"), ("mxfp6", "fp6_e2m3", 32, "e8m0"), ("mxfp4", "fp4_e2m1", 32, "e8m0"),
        ("mxint8", "int8", 32, "e8m0"), ("nvfp4", "fp4_e2m1", 16, "e4m3"),
    ):  # fmt: skip
        assert weight[name] == QuantSpec(dtype, "group", size, scale_dtype=kept)
        assert PRECISIONS[name].input == QuantSpec(dtype, "group", size, dynamic=True, scale_dtype=kept)
    # ggml-common.h: bits of an element, weights of a block, and whether a block has a least value
    for name, width, size, least in (
        ("q8_0", 8, 32, False), ("q4_0", 4, 32, False), ("q4_1", 4, 32, True), ("q5_0", 5, 32, False),
        ("q5_1", 5, 32, True), ("q2_k", 2, 16, True), ("q3_k", 3, 16, False), ("q4_k", 4, 32, True),
        ("q5_k", 5, 32, True), ("q6_k", 6, 16, False),
    ):  # fmt: skip
        spec = weight[name]
        assert spec is not None and (spec.bits, spec.group_size, spec.zero_point) == (width, size, least)
        assert PRECISIONS[name].input is None


@pytest.mark.parametrize("name, expected", {
    # sizeof the blocks in ggml-common.h, of as many as 256 weights are
    "q8_0": 34 * 8, "q4_0": 18 * 8, "q4_1": 20 * 8, "q5_0": 22 * 8, "q5_1": 24 * 8, "q2_k": 84, "q3_k": 110,
    "q4_k": 144, "q5_k": 176, "q6_k": 210,
    # k elements and a scale of a byte; of NVFP4 besides a float32 for the whole tensor
    "mxfp8": 33 * 8, "mxfp6": 25 * 8, "mxfp4": 17 * 8, "mxint8": 33 * 8, "nvfp4": 9 * 16 + 4,
    "w4a16_nf4": 128 + 4 * 2, "w3a16": 96 + 4 * 2, "w2a16": 64 + 8 * 2, "w6a6": 192 + 4, "w4a8_asym": 128 + 8 * 2 + 4,
}.items())  # fmt: skip
def test_bytes_of_a_row_of_256_weights(name: str, expected: int) -> None:
    layout = Layout(256, 1, False, replace(PRECISIONS[name], input=None), (1,), (256,), (False,), (1,))
    assert sum(math.prod(shape) * dtype.itemsize for shape, dtype in layout.buffers().values()) == expected
