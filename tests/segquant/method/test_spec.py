"""Frozen specs: what they refuse, the precision table, JSON round trips, presets."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest

from segquant import PRECISIONS, Calibrator, Method, QuantizationError, QuantSpec, presets
from segquant.method.plan_file import read_plan
from segquant.numerics.precisions import scheme_of
from segquant.optimizers import SmoothQuant, SvdQuant
from segquant.ranges import Percentile

PRESETS = ("none", "rtn", "smoothquant", "gptq", "svdquant", "segquant_a", "segquant_g")


def test_precision_table() -> None:
    named = "w8a8_tensor w8a8 w8a8_dynamic fp8 w4a8_channel w4a8 w4a4 w4a16"
    named += " mxfp8 mxfp6 mxfp4 mxint8 nvfp4 fp8_dynamic w4a16_nf4 w6a6 w4a6 w3a16 w2a16 w8a8_asym w4a8_asym w8a16"
    named += " q8_0 q4_0 q4_1 q5_0 q5_1 q2_k q3_k q4_k q5_k q6_k"
    assert set(PRECISIONS) == set(named.split())
    assert PRECISIONS["w4a8"].weight == QuantSpec("int4", "group", 32)
    assert PRECISIONS["w8a8_tensor"].static_input and not PRECISIONS["w8a8_dynamic"].static_input
    assert PRECISIONS["w4a16"].input is None


@pytest.mark.parametrize("values", [
    {"alpha": 1.1}, {"alpha": "serach"}, {"rank": 0}, {"optimizer": "smoth"}, {"calibrator": "x"}, {"damp": 0.0},
    {"on_uncalled": "ignore"}, {"skip": "proj_out"}, {"iterations": -1}, {"headroom": -0.1}, {"headroom": "serach"},
    {"gram_shrinkage": -1.0}, {"rank_limit": 0}, {"rank_fraction": 0.0}, {"alpha_rows": "sene"}, {"clip_norm": 0.0},
    {"rotate": "regular", "rotation_group": 128},
])  # fmt: skip
def test_bad_methods(values: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Method.of("m", PRECISIONS["w8a8"], **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", PRESETS)
def test_presets_round_trip_through_json(name: str, precision: str) -> None:
    if name == "smoothquant" and PRECISIONS[precision].input is None:
        with pytest.raises(ValueError, match="does not quantize activations"):
            presets.smoothquant(precision)
        return
    method = getattr(presets, name)(precision, seglinear=True, dualscale=False, skip=["a.*"])
    assert method.targets.skip == ("a.*",)
    assert Method.from_dict(json.loads(json.dumps(method.to_dict()))) == method
    if name != "none":
        assert method.scheme == PRECISIONS[precision]


def test_presets_are_what_the_paper_says() -> None:
    eight, four = presets.segquant_g("w8a8_tensor"), presets.segquant_a("w4a8")
    assert (eight.value("optimizer"), eight.value("calibrator"), eight.value("alpha")) == ("smooth", "gptq", "search")
    assert (four.value("optimizer"), four.value("calibrator"), four.value("rank")) == ("svd", "amax", None)
    sides = ((3072, 12288), (1536, 1536), (384, 1536), (256, 1024), (16, 256))
    assert [four.optimizer.rank_of(*each) for each in sides] == [64, 64, 16, 10, 1]
    assert [presets.svdquant("w4a8").optimizer.rank_of(*each) for each in sides] == [32, 32, 12, 8, 1]
    assert presets.segquant_a("w4a8", rank=5).optimizer.rank_of(16, 16) == 5
    for method in (eight, four, presets.segquant_g("w4a8"), presets.segquant_a("w8a8_tensor")):
        assert method.value("seglinear") and method.value("dualscale")
        assert (method.value("alpha_rows"), method.value("alpha_none")) == ("seen", False)
        assert (method.value("iterations"), method.headroom, method.value("ranges")) == (0, 0.0, "amax")


def test_segquant_plus_is_what_was_added() -> None:
    for precision, ranges in (("w8a8_tensor", "amax"), ("w8a8_dynamic", "mse"), ("w4a8", "mse"), ("w4a16", "mse")):
        plus, published = presets.segquant_plus(precision), presets.segquant_g(precision)
        added = {"alpha_rows": "held_out", "alpha_none": True, "headroom": "search", "iterations": 1, "ranges": ranges}
        same = {"rank_limit": 32, "rank_fraction": 1 / 32, "name": "segquant_plus"}
        assert published.changed(**added, **same) == plus
        assert presets.segquant_plus(precision, ranges=None) == plus
    assert presets.segquant_plus("w8a8_tensor", ranges="mse").value("ranges") == "mse"


def test_gram_and_ranges_are_asked_for_where_they_are_used() -> None:
    assert "gram" not in presets.rtn().needs and "gram" in presets.gptq().needs
    assert not presets.rtn("w4a8").needs and presets.rtn("w8a8").needs


def test_unknown_names_come_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="w8a8_tensor"):
        presets.rtn("w8a8_tenser")
    with pytest.raises(ValueError, match="nearest: calibrator"):
        Method.from_dict({**presets.rtn().to_dict(), "calibrater": "gptq"})


def test_settings_that_no_member_takes_wait_for_an_override() -> None:
    method = Method.of("m", "w8a8", optimizer="smooth", alpha=0.3, rank=5, iterations=2, percentile=99.0)
    assert method.optimizer == SmoothQuant(0.3) and method.value("rank") == 5 and method.value("damp") == 0.01
    brought = method.changed(optimizer="svd", ranges="percentile")
    assert brought.optimizer == SvdQuant(0.3, 5, "exact", 2) and brought.ranges == Percentile(99.0)
    assert brought.changed(optimizer="smooth", ranges="amax") == method
    assert Method.of("m", "w8a8", optimizer=SvdQuant(rank=4)).changed(alpha=0.1).optimizer == SvdQuant(0.1, 4)
    assert Method.from_dict(json.loads(json.dumps(method.to_dict()))) == method


def test_the_first_versions_form_is_read(tmp_path: Path) -> None:
    """As the first version wrote it: every setting flat."""
    old = {
        "name": "old", "scheme": {"weight": {"dtype": "int4", "granularity": "group", "group_size": 32,
        "dynamic": False}, "input": {"dtype": "int8", "granularity": "token", "group_size": None, "dynamic": True}},
        "seglinear": True, "dualscale": False, "optimizer": "svd", "alpha": "search", "rank": None, "svd": "randomized",
        "iterations": 1, "rotate": True, "calibrator": "gptq", "ranges": "mse", "percentile": 99.9, "act_order": False,
        "damp": 0.02, "bias_correction": True, "cuts": "wrong", "skip": ["a.*"], "overrides": [["b", {"rank": 3}]],
        "on_uncalled": "skip", "convolutions": True, "seed": 4, "budget": {"bytes": 1.2, "operations": 2.0,
        "average_bits": None}, "reconstruction": {"rows": 64},
    }  # fmt: skip
    weight = QuantSpec("int4", "group", 32, scale_dtype="float32")  # as all scales were
    expected = Method.of(
        "old", replace(PRECISIONS["w4a8"], weight=weight), seglinear=True, optimizer="svd", svd="randomized",
        iterations=1, rotate=True, calibrator="gptq", ranges="mse", act_order=False, damp=0.02, bias_correction=True,
        cuts="wrong", skip=["a.*"], overrides={"b": {"rank": 3}}, on_uncalled="skip", convolutions=True, seed=4,
        budget={"bytes": 1.2, "operations": 2.0}, reconstruction={"rows": 64},
        headroom="search", percentile=99.9,  # as they were before they could be told
    )  # fmt: skip
    assert Method.from_dict(old) == expected
    layers = [{"layer": "x[0]", "choice": {"rank": 2, "precision": "w8a8_dynamic"}, "error": 0.1}]
    plan = {"schema": 1, "method": {**old, "budget": None}, "budget": old["budget"], "layers": layers}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    read = read_plan(tmp_path / "plan.json")
    chosen = {**dict(expected.targets.overrides), "x[[]0]": {"rank": 2, "precision": "w8a8_dynamic"}}
    assert read == expected.changed(name="plan", budget=None, overrides=chosen)
    with pytest.raises(ValueError, match="a method of version 9; this version reads 1 and 2"):
        Method.from_dict({**expected.to_dict(), "version": 9})


@pytest.mark.parametrize("name, precision, headroom", [
    ("rtn", "w8a8", 0.0), ("gptq", "w4a8", 0.0), ("smoothquant", "w8a8", 0.0), ("awq", "w4a16", 0.0),
    ("smoothquant_plus", "w8a8_tensor", "search"), ("segquant_g", "w8a8_tensor", "search"),
    ("quarot", "w8a8", "search"),
])  # fmt: skip
def test_methods_saved_before_headroom_was_told_have_it_where_they_had(
    name: str, precision: str, headroom: float | str
) -> None:
    """Those searched it where cuts, rotations or a searched α left ranges in doubt; other settings stay as told."""
    values = getattr(presets, name)(precision).to_dict()
    for key in ("headroom", "gram_shrinkage"):
        del values[key]
    for key in ("alpha_rows", "alpha_none", "rank_limit", "rank_fraction"):
        values["optimizer"].pop(key, None)
        values["spare"].pop(key, None)
    read = Method.from_dict(values)
    assert read.headroom == headroom and read.gram_shrinkage == 0.5
    assert (read.value("alpha_rows"), read.value("alpha_none"), read.value("rank_limit")) == ("held_out", True, 32)
    assert read.changed(ranges="percentile").value("percentile") == 99.9
    told = Method.from_dict({**values, "ranges": {"name": "percentile", "percentile": 99.5}})
    assert told.value("percentile") == 99.5


def test_values_of_anybody_s_part_fit_its_annotations() -> None:
    @dataclass(frozen=True)
    class Mine(Calibrator):
        name: ClassVar[str] = "mine_of_test_spec"
        share: float = 0.5
        most: int | None = None
        loose: float = None  # type: ignore[assignment] # as some write it
        unknown: "Nowhere" = 1  # type: ignore[name-defined] # noqa: F821, UP037

    Method("a", scheme_of("w8a8"), calibrator=Mine(share="lots"))  # type: ignore[arg-type] # its annotations are unreadable

    @dataclass(frozen=True)
    class Plain(Calibrator):
        name: ClassVar[str] = "plain_of_test_spec"
        share: float = 0.5
        most: int | None = None
        loose: float = None  # type: ignore[assignment]

    Method("a", scheme_of("w8a8"), calibrator=Plain(share=1, most=2))
    for values, words in (({"share": "lots"}, "share is 'lots'; give a number"), ({"most": 1.5}, "most is 1.5")):
        with pytest.raises(QuantizationError, match=words):
            Method("a", scheme_of("w8a8"), calibrator=Plain(**values))
