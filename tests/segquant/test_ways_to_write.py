"""Methods, precisions and batches as people write them: taken, or refused with the way to write it."""

from __future__ import annotations

import json
from collections import UserDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import segquant
from segquant import Method, QuantizationError, QuantLinear, QuantScheme, QuantSpec, observe, presets, quantize_
from segquant.arguments import PRESETS, method_of
from tests.segquant.support import tensor

SCHEME = QuantScheme(QuantSpec("int8", "group", 16), QuantSpec("int8", "token", dynamic=True))
FIELDS = {
    "weight": {"dtype": "int8", "granularity": "group", "group_size": 16},
    "input": {"dtype": "int8", "granularity": "token", "dynamic": True},
}
BATCHES = [tensor(4, 16, seed=seed) for seed in range(5)]


def model() -> nn.Sequential:
    found = nn.Sequential(nn.Linear(16, 16), nn.SiLU(), nn.Dropout(0.5), nn.Linear(16, 4))
    for layer in (found[0], found[3]):
        layer.weight.data, layer.bias.data = tensor(*layer.weight.shape, seed=3), tensor(*layer.bias.shape, seed=4)
    return found


def numbers(method: Any, batches: Any = BATCHES, **given: Any) -> dict[str, Tensor]:
    return quantize_(model(), method, batches, **given).state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in ("none", "plan", "percentile")])
def test_presets_take_schemes(name: str) -> None:
    method = PRESETS[name](SCHEME)
    assert method.scheme == SCHEME == PRESETS[name](precision=FIELDS).scheme
    assert Method.from_dict(json.loads(json.dumps(method.to_dict()))) == method


def test_a_scheme_is_told_by_its_name_or_without() -> None:
    with pytest.raises(ValueError, match="smoothquant at w4a16: it moves"):
        presets.smoothquant(segquant.PRECISIONS["w4a16"])
    with pytest.raises(ValueError, match="percentile at w8g16_a8token: it picks"):
        presets.percentile(SCHEME)
    with pytest.raises(QuantizationError, match=r"precision is 8; give a name \(w8a8_tensor, .*\) or a QuantScheme"):
        presets.rtn(8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the weight format .* has no dtype"):
        presets.rtn({"weight": {"granularity": "tensor"}})


@pytest.mark.parametrize("precision", ["w8a8_dynamic", SCHEME, FIELDS])
def test_overrides_take_schemes(precision: Any, tmp_path: Path) -> None:
    method = presets.rtn("w8a8", overrides={"0": {"precision": precision}})
    assert Method.from_dict(json.loads(json.dumps(method.to_dict()))).to_dict() == method.to_dict()
    found = model()
    outcome = segquant.quantize_with_outcome_(found, method, BATCHES)
    expected = SCHEME if precision != "w8a8_dynamic" else segquant.PRECISIONS["w8a8_dynamic"]
    assert found[0].layout.scheme == expected and found[3].layout.scheme == segquant.PRECISIONS["w8a8"]
    segquant.save_quantized(found, tmp_path / "saved", outcome)
    assert segquant.read_outcome(tmp_path / "saved").method.for_layer("0").scheme == expected


def test_methods_by_name_and_as_dictionaries() -> None:
    expected = numbers(presets.segquant_g("w8a8_tensor"))
    assert same(numbers("segquant_g"), expected)
    assert same(numbers({"name": "segquant_g", "precision": "w8a8_tensor"}), expected)
    assert same(numbers(UserDict(presets.segquant_g("w8a8_tensor").to_dict())), expected)
    given = {"name": "gptq", "precision": SCHEME, "damp": 0.1, "skip": ["0"]}
    assert method_of(given) == presets.gptq(SCHEME, damp=0.1, skip=["0"]) and given["name"] == "gptq"
    layer = QuantLinear.from_float(model()[0], {"name": "rtn", "precision": "w8a8_dynamic"})
    assert layer.layout.scheme == segquant.PRECISIONS["w8a8_dynamic"]


@pytest.mark.parametrize(
    "method, said",
    [
        (presets.rtn, r"method is the function rtn; call it: presets.rtn\('w8a8_tensor'\)"),
        ("segquant_q", "unknown method 'segquant_q'; nearest: segquant_"),
        ("torchao_int4", r"unknown method 'torchao_int4'; known: .*quantizer=NAME"),
        ("ptqd", r"unknown method 'ptqd'; nearest: .*; the benchmark's own \(other tools, corrections\)"),
        ("w4a8", r"'w4a8' is a precision, not a method; write presets.segquant_g\('w4a8'\)"),
        (SCHEME, "method is a QuantScheme; give a method, for example presets"),
        (None, "method is None; give a method, for example presets"),
        ({"precision": "w4a8"}, "has no name; write {'name': 'segquant_g'"),
        ({"name": "rtn", "precison": "w4a8"}, "method 'rtn' cannot be made: rtn takes no 'precison'; nearest: preci"),
        ({"name": "rtn", "rank": 0}, "method 'rtn' cannot be made"),
        ("plan", "method 'plan' cannot be made: quantizer plan needs"),
        ({"name": "rtn", "scheme": 3}, "a saved method cannot be made|from_dict: values is 3"),
    ],
)
def test_what_is_no_method(method: Any, said: str) -> None:
    with pytest.raises(QuantizationError, match=said):
        quantize_(model(), method, BATCHES)
    with pytest.raises(QuantizationError, match=said):
        QuantLinear.from_float(model()[0], method)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = model()

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.inner(x if y is None else x + y)


def test_batches_in_every_form() -> None:
    expected = observe(model(), BATCHES)["0"].mean_square
    rows = torch.cat(BATCHES)
    loaders = DataLoader(TensorDataset(rows), batch_size=4), DataLoader(rows, batch_size=4)
    forms = [
        tuple(BATCHES), iter(BATCHES), (batch for batch in BATCHES), [(batch,) for batch in BATCHES],
        [[batch] for batch in BATCHES], {"a": BATCHES}["a"], [{"input": batch} for batch in BATCHES], *loaders,
    ]  # fmt: skip
    assert all(torch.equal(observe(model(), form)["0"].mean_square, expected) for form in forms)
    named = [{"x": batch, "y": torch.zeros(())} for batch in BATCHES]
    assert torch.equal(observe(Named(), named)["inner.0"].mean_square, expected)
    assert same(numbers(presets.segquant_g("w8a8"), loaders[1]), numbers(presets.segquant_g("w8a8")))


USED = iter([])
REFUSED = [
    (BATCHES[0], r"batches is one tensor, which is a single batch; put it into a list: \[batch\]"),
    ({"input": BATCHES[0]}, r"batches is one dictionary, which is a single batch; put it into a list: \[batch\]"),
    ("data", "batches is 'data'; give a list of batches, each a dict of the forward's keyword"),
    (Path("data"), "batches is a PosixPath; give a list of batches"),
    (3, "batches is 3; give a list of batches"),
    (None, "there are no calibration batches; give at least one"),
    ([], "there are no calibration batches; give at least one"),
    (USED, "there are no calibration batches; give at least one"),
    (["x"], "a calibration batch is a str; yield a dict"),
    ([3], "a calibration batch is a int; yield a dict"),
    ([{1: BATCHES[0]}], "a calibration batch is a dict; yield a dict"),
    ([{"wrong": BATCHES[0]}], r"cannot run on a calibration batch of wrong \[4, 16\] float32 on cpu: TypeError"),
    ([(BATCHES[0], BATCHES[1])], r"of argument 0 \[4, 16\] float32 on cpu, argument 1 .*: TypeError.*; yield a dict"),
    ([tensor(4, 7)], r"of argument 0 \[4, 7\] float32 on cpu: RuntimeError: mat1 and mat2 shapes"),
    ([BATCHES[0].bfloat16()], r"the model is on dtype torch.float32: move one of the two.*autocast is off here"),
    ([BATCHES[0].to("meta")], r"inputs have no values|the model is on device cpu: move one of the two there with .to"),
]


@pytest.mark.parametrize("batches, said", REFUSED)
def test_what_are_no_batches(batches: Any, said: str) -> None:
    for method in (presets.rtn("w8a8"), presets.q_diffusion("w8a8", seglinear=False)):
        with pytest.raises(QuantizationError, match=f"{said}|reads the calibration batches a second time"):
            quantize_(model(), method, batches)
    with pytest.raises(QuantizationError):  # where the graph is read first, that may say it
        quantize_(model(), presets.segquant_g("w8a8"), batches)
    with pytest.raises(QuantizationError, match=said):
        observe(model(), batches)
    measured = said.replace("calibration batches", "batches to measure the output error on")
    with pytest.raises(QuantizationError, match=f"{measured}|no values"):
        segquant.output_error(model(), model(), batches)


def test_methods_that_read_no_data_need_no_batches() -> None:
    for batches in (None, [], iter([])):
        assert same(numbers(presets.rtn("w8a8_dynamic"), batches), numbers(presets.rtn("w8a8_dynamic")))


def test_a_model_in_training_mode() -> None:
    trained = model().train()
    trained[0].eval()
    quantize_(trained, presets.segquant_g("w8a8"), BATCHES)
    assert same(trained.state_dict(), numbers(presets.segquant_g("w8a8")))
    assert [layer.training for layer in trained] == [False, True, True, True] and trained.training
