"""Every preset at every precision it takes: what it sets, what it refuses, and that it works."""

from __future__ import annotations

import copy
import inspect
import json
import typing
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from segquant import (
    PRECISIONS,
    InputStats,
    Method,
    QuantLinear,
    layer_errors,
    observe,
    output_error,
    presets,
    quantize_,
)
from tests.segquant.support import EIGHT, Block, block_batches, block_segments

PUBLIC = [name for name in presets.__all__ if inspect.isfunction(getattr(presets, name))]
FIXED = [name for name in PUBLIC if name not in ("none", "auto", "plan")]
"""Presets that do the same to every layer; `auto` and `plan` have tests of their own."""
REFUSED = {
    (name, precision)
    for precision, scheme in PRECISIONS.items()
    for name in ("smoothquant", "smoothquant_plus", "smoothquant_gptq", "ptq4dit", "vidit_q")
    if scheme.input is None
} | {("percentile", name) for name, scheme in PRECISIONS.items() if not scheme.static_input}
TRIED = (*EIGHT, "w8a8_asym", "w4a8_asym", "w4a16_nf4", "nvfp4")
"""Zero points and grids that are not uniform beside the first versions'; test_quantize.py has one of each kind."""
TAKEN = [(name, precision) for name in FIXED for precision in TRIED if (name, precision) not in REFUSED]
SEARCHING = ("awq", "svdquant", "svdquant_gptq", "smoothquant_gptq", "segquant_a", "segquant_g", "segquant_plus")
SEARCHING += ("segquant_r",)
QUICK: dict[str, dict[str, object]] = dict.fromkeys(SEARCHING, {"alpha": 0.5})
QUICK["q_diffusion"] = {"reconstruction": {"steps": 10}}
WIDTH = 64  # groups of 64 must divide it


def preset(name: str, precision: str, **extra: object) -> Method:
    return getattr(presets, name)(precision, **extra)


def batches() -> list[dict[str, Tensor]]:
    return block_batches(6, 1, WIDTH)


@cache
def calibrated() -> tuple[nn.Module, dict[str, InputStats]]:
    model = Block(WIDTH)
    return model, observe(model, batches(), gram=True, salience=True)


def quantized(method: Method) -> nn.Module:
    model, stats = calibrated()
    return quantize_(copy.deepcopy(model), method, batches(), block_segments(WIDTH), stats=stats)


def error(method: Method) -> float:
    return output_error(calibrated()[0], quantized(method), block_batches(4, 2, WIDTH))


@cache
def rtn_error(precision: str) -> float:
    return error(presets.rtn(precision))


@pytest.mark.parametrize("name, precision", TAKEN)
def test_every_preset_quantizes_at_every_precision_it_takes(name: str, precision: str) -> None:
    method = preset(name, precision, **QUICK.get(name, {}))
    assert method.name == name and method.scheme == PRECISIONS[precision]
    assert Method.from_dict(json.loads(json.dumps(method.to_dict()))) == method
    found = quantized(method)
    assert all(isinstance(getattr(found, layer), QuantLinear) for layer in block_segments(WIDTH))
    # a method may lose to plain rounding on one tiny model, but not by much, and the signal stays; a search on the
    # twelve rows that set a static range, as in the papers, finds what clips others
    factor = 4 if method.value("alpha") == "search" and method.value("alpha_rows") == "seen" else 2.2
    assert 0 < error(method) < min(factor * rtn_error(precision), 0.6)


@pytest.mark.parametrize("name, precision", sorted(REFUSED))
def test_presets_refuse_what_makes_no_sense(name: str, precision: str) -> None:
    with pytest.raises(ValueError, match=f"{name} at {precision}: .*use"):
        preset(name, precision)


@pytest.mark.parametrize("name", [*FIXED, "none", "auto"])
def test_common_keys(name: str) -> None:
    precision, corrects = "w8a8_tensor", name != "q_diffusion"  # AdaRound leaves no mean error to correct
    method = preset(name, precision, seglinear=True, dualscale=True, rotate=True, ranges="mse", percentile=99.0,
                    bias_correction=corrects, cuts="wrong", skip=["a.*"], on_uncalled="skip", seed=5)  # fmt: skip
    assert (
        method.value("seglinear")
        and method.value("dualscale")
        and method.value("rotate")
        and method.bias_correction is corrects
    )
    assert (method.value("ranges"), method.value("percentile"), method.cuts.control, method.targets.skip) == (
        "mse",
        99.0,
        "wrong",
        ("a.*",),
    )
    assert (method.targets.on_uncalled, method.seed) == ("skip", 5)
    with pytest.raises(TypeError, match="takes no 'seglinaer'; nearest: seglinear"):
        preset(name, precision, seglinaer=True)
    with pytest.raises(ValueError, match="skip is a list of globs, not the string 'proj_out'"):
        preset(name, precision, skip="proj_out")
    with pytest.raises(ValueError, match="unknown precision 'w8a8_tenser'; nearest: w8a8_tensor"):
        preset(name, "w8a8_tenser")


def taken(name: str) -> set[str]:
    """What a preset takes besides the precision."""
    hints = typing.get_type_hints(getattr(presets, name))
    if "settings" not in hints:
        return set(hints) - {"precision", "return"}
    (keywords,) = typing.get_args(hints["settings"])
    return set(keywords.__annotations__)


MISSPELT = [
    (name, key[:1] + key[2:], key)
    for name in PUBLIC
    for key in sorted({"precision"} | taken(name) - set(presets.Common.__annotations__))
]


@pytest.mark.parametrize("name, wrong, right", [*MISSPELT, ("svdquant", "rnk", "rank"), ("rtn", "rotat", "rotate")])
def test_an_unknown_keyword_names_the_nearest_of_the_preset(name: str, wrong: str, right: str) -> None:
    with pytest.raises(TypeError, match=f"^{name} takes no '{wrong}'; nearest: {right}(,|$)"):
        getattr(presets, name)(**{wrong: 3})


def test_an_unknown_keyword_like_none_of_the_preset_gets_them_all() -> None:
    with pytest.raises(TypeError, match=r"^svdquant takes no 'zzz'; known: alpha, .*iterations, .*rank, .*svd"):
        presets.svdquant(zzz=3)


def test_what_the_papers_say() -> None:
    kinds = {name: preset(name, "w8a8_tensor") for name in FIXED}
    assert (kinds["smoothquant"].value("alpha"), kinds["smoothquant_plus"].value("alpha")) == (0.5, "search")
    assert {name for name, method in kinds.items() if "salience" in method.needs} == {"ptq4dit"}
    assert {name for name, method in kinds.items() if method.value("ranges") != "amax"} >= {"percentile", "mse", "awq"}
    assert all(kinds[name].value("calibrator") == "gptq" for name in ("gptq", "quarot", "segquant_g"))
    cut = {name for name in kinds if kinds[name].value("seglinear")}
    assert cut == {name for name in kinds if name[:8] == "segquant"} | {"q_diffusion"}
    assert {name for name in cut if kinds[name].cuts.control != "graph"} == {"q_diffusion"}
    assert (
        kinds["quarot"].value("rotate")
        and not kinds["segquant_a"].value("rotate")
        and not kinds["gptq"].value("rotate")
    )
    assert kinds["vidit_q"].value("rotate") and kinds["vidit_q"].value("optimizer") == "smooth"
    assert kinds["q_diffusion"].value("calibrator") == "adaround" and kinds["svdquant"].value("optimizer") == "svd"
    assert presets.auto().budget is not None
    assert {name for name, method in kinds.items() if method.budget is not None} == {"gptq_mixed"}


def test_vidit_q_divides_by_its_channels_maxima_and_then_rotates() -> None:
    """2406.02540: the static imbalance of channels is scaled away, the rotation has what changes over time."""
    torch.manual_seed(0)
    linear, x = nn.Linear(WIDTH, 32), torch.randn(200, WIDTH) * torch.logspace(-1, 1, WIDTH)
    x[torch.arange(200), torch.randint(WIDTH, (200,))] *= 50  # an outlier of every token, which no scale knows
    method = presets.vidit_q("w8a8_dynamic", alpha=0.3)
    stats = observe(nn.Sequential(linear), [(x,)])["0"]
    layer = QuantLinear.from_float(linear, method, stats)
    assert [transform.name for transform in layer.layout.transforms] == ["smoothing", "rotation"]
    with torch.no_grad():
        maxima = x.abs().amax(0) ** 0.3 / linear.weight.abs().amax(0) ** 0.7
        found = layer.tensors()["smooth"][0] / maxima
        torch.testing.assert_close(found, found.mean().expand(WIDTH), rtol=1e-4, atol=0)  # up to one factor for all
        errors = [
            (QuantLinear.from_float(linear, given, stats)(x) - linear(x)).norm()
            for given in (method, presets.smoothquant("w8a8_dynamic", alpha=0.3), presets.rtn("w8a8_dynamic"))
        ]
    assert errors[0] < errors[1] < errors[2]


def test_none_takes_everything_and_does_nothing() -> None:
    method = presets.none("w4a4", rotate=True, overrides={"up": {"precision": "w8a8"}})
    model = Block()
    assert quantize_(model, method, []) is model and all(isinstance(child, nn.Linear) for child in model.children())


def test_plan_needs_a_path() -> None:
    with pytest.raises(ValueError, match="quantizer.path=FILE"):
        presets.plan("w4a8")


@pytest.mark.parametrize("name, precision", [
    ("mse", "w4a8_channel"), ("gptq", "w4a8"), ("awq", "w4a16"), ("quarot", "w4a4"), ("ptq4dit", "w8a8_tensor"),
    ("svdquant", "w4a8"), ("segquant_a", "w8a8_tensor"), ("segquant_g", "w4a8"),
])  # fmt: skip
def test_methods_earn_their_keep_where_they_claim_to(name: str, precision: str) -> None:
    """Each at a precision that its paper is about, against plain rounding, on fresh inputs, over all layers."""
    model, held = calibrated()[0], block_batches(4, 2, WIDTH)
    found, plain = (
        layer_errors(model, quantized(method), held).values()
        for method in (preset(name, precision), presets.rtn(precision))
    )
    assert torch.tensor(list(found)).log().mean() < torch.tensor(list(plain)).log().mean()
