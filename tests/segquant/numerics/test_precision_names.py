"""Names of formats: one for each, read back, and safe in the names of files."""

from __future__ import annotations

import itertools
import re

import pytest

from segquant import PRECISIONS, Method, QuantScheme, QuantSpec, presets, register
from segquant.numerics.formats import DTYPES
from segquant.numerics.precisions import NAMED, precision_name, scheme_of
from segquant.numerics.scales import SCALE_DTYPES


def _specs(granularities: tuple[tuple[str, int | None, bool], ...]) -> list[QuantSpec]:
    found = []
    for dtype, (granularity, size, dynamic), scale in itertools.product(DTYPES, granularities, SCALE_DTYPES):
        try:
            found.append(QuantSpec(dtype, granularity, size, dynamic, scale))
        except ValueError:  # scales of GGUF's that do not go with the dtype
            continue
    return found


def _schemes() -> list[QuantScheme]:
    weights = _specs((("tensor", None, False), ("channel", None, False), ("group", 16, False), ("group", 128, False)))
    inputs = [
        None,
        *_specs((("tensor", None, False), ("tensor", None, True), ("token", None, True), ("group", 16, True))),
    ]
    found = []
    sides = [*itertools.product(weights, inputs[:3]), *itertools.product(weights[:3], inputs)]
    for weight, given in sides:
        try:
            found.append(QuantScheme(weight, given))
        except ValueError:  # scales that are for weights
            continue
    return list(dict.fromkeys(found))


def test_every_scheme_has_a_name_of_its_own_which_reads_back() -> None:
    schemes = [*NAMED.values(), *_schemes()]
    names = {scheme: precision_name(scheme) for scheme in schemes}
    assert len(names) > 1000 and len(set(names.values())) == len(names)
    for scheme, name in names.items():
        assert scheme_of(name) == scheme
        assert re.fullmatch(r"[\w.-]{3,60}", name)
        assert Method.of("m", name) == Method.of("m", scheme)


def test_named_ones_keep_their_names() -> None:
    assert {precision_name(scheme): scheme for scheme in NAMED.values()} == NAMED
    assert precision_name(presets.none().scheme) == "float"


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("w6g128_a8token", QuantScheme(QuantSpec("int6", "group", 128), QuantSpec("int8", "token", dynamic=True))),
        ("w6tensor_a8dynamic", QuantScheme(QuantSpec("int6"), QuantSpec("int8", dynamic=True))),
        ("wu3channel-bfloat16_a16", QuantScheme(QuantSpec("uint3", "channel", scale_dtype="bfloat16"), None)),
        ("wfp8e5m2g32-e8m0_a16", QuantScheme(QuantSpec("fp8_e5m2", "group", 32, scale_dtype="e8m0"), None)),
    ],
)
def test_what_names_say(name: str, scheme: QuantScheme) -> None:
    assert precision_name(scheme) == name and scheme_of(name) == scheme


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("w9g64_a16", "unknown precision 'w9g64_a16'; nearest: w"),
        ("w6g64", "unknown precision"),
        ("w6_a8token", "unknown precision"),
        ("w6g0_a16", "group_size must be at least 1"),
        ("w6token_a16", "a weight is quantized once"),
        ("w6g64-e9_a16", "unknown scale_dtype 'e9'"),
        ("w8channel_a8channel", "per-channel inputs"),
        ("wfp8g32-k6_a16", "goes with integers"),
    ],
)
def test_names_that_are_none(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        presets.rtn(name)
    assert "\n" not in str(raised.value)


def test_names_do_not_depend_on_what_else_is_registered() -> None:
    scheme = QuantScheme(QuantSpec("int3", "group", 24), None)
    before = dict(PRECISIONS)
    try:
        register(scheme, name="mine")
        assert precision_name(scheme) == "w3g24_a16" and scheme_of("mine") == scheme
    finally:
        PRECISIONS.clear()
        PRECISIONS.update(before)


def test_an_override_by_name_and_by_scheme_is_saved_alike() -> None:
    scheme = scheme_of("w6g32_a8token")
    named = presets.rtn("w8a8", overrides={"a": {"precision": "w6g32_a8token"}})
    given = presets.rtn("w8a8", overrides={"a": {"precision": scheme}})
    for method in (named, given):
        again = Method.from_dict(method.to_dict())
        layer = again.for_layer("a")
        assert again == method and layer is not None and layer.scheme == scheme
