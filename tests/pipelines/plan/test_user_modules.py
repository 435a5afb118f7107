"""`segquant-plan` on modules of users: sizes of what is really quantized, refusals of `quantize_`, no tracebacks."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from segquant import Method, QuantizationError, presets, quantize_
from segquant.modules.tensors import model_weight_bytes
from segquant_bench.pipelines.plan.cli import main
from segquant_bench.pipelines.plan.config import compose_plan, methods_of
from segquant_bench.pipelines.plan.counts import count_rows
from segquant_bench.pipelines.plan.sizes import ComponentPlan, component_plan
from segquant_bench.pipelines.plan.source import Source
from segquant_bench.pipelines.plan.text import render

USER_MODULE = """
from torch import nn

def needs(name):
    return nn.Linear(16, 16)

def fails():
    raise FileNotFoundError("no weights at /x")

def lazy():
    return nn.Sequential(nn.LazyLinear(8)), {}

instance = nn.Sequential(nn.Linear(16, 16))
"""


class Tied(nn.Module):
    """`b` is `a`, and `c` has its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(16, 32), nn.Linear(16, 32)
        self.b, self.c.weight = self.a, self.a.weight

    def forward(self, x: torch.Tensor) -> Any:
        return self.a(x).chunk(2, -1), self.b(x).chunk(2, -1), self.c(x)


class Embedded(nn.Module):
    """The output layer has the weight of an embedding, which no method quantizes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(32, 16), nn.Linear(16, 32, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x)


class Net(nn.Module):
    """Convolutions of 27, 9 and 16 columns, the second grouped, and a linear; names that occur in other words."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.d = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.e, self.out = nn.Conv2d(16, 32, 1), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        return self.out(self.e(torch.cat([hidden, self.d(hidden)], 1)).flatten(2).transpose(1, 2))


class Uncalled(nn.Module):
    """Its layer's weight is used without a call of the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(16, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.a.weight.T


class Branch(nn.Module):
    """What it does depends on an argument's value."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> Any:
        return self.a(self.a(x)) if t.max() > 3 else self.a(x)


class Experts(nn.Module):
    """Which layer a row goes through depends on weights."""

    def __init__(self) -> None:
        super().__init__()
        self.route, self.experts = nn.Linear(16, 2), nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen, found = self.route(x).argmax(-1), torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            mask = chosen == index
            if mask.any():
                found[mask] = expert(x[mask])
        return found


ROW = {"x": torch.ones(2, 16)}


def _plan(module: nn.Module, inputs: dict[str, Any], *overrides: str) -> ComponentPlan:
    config = compose_plan(["model.target=here:build", *overrides])
    return component_plan(Source("denoiser", "here", module, inputs), methods_of(config), "float32")


def _bytes(make: Callable[[], nn.Module], inputs: Mapping[str, Any], method: Method) -> int:
    return model_weight_bytes(quantize_(make().eval(), method, [inputs]))


@pytest.mark.parametrize("make", [Tied, Embedded])
def test_tied_weights_are_subtracted_once(make: Callable[[], nn.Module]) -> None:
    plan = _plan(make(), ROW, "precisions=[w8a8]")
    (estimate,) = plan.estimates
    assert plan.bytes == model_weight_bytes(make())
    assert estimate.plain == _bytes(make, ROW, presets.rtn("w8a8"))
    assert estimate.bytes == _bytes(make, ROW, presets.segquant_g("w8a8"))


class Normed(nn.Module):
    """Two layers behind a norm, and one behind an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.a, self.b, self.c = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        return self.c(torch.sigmoid(self.a(y) + self.b(y)))


@pytest.mark.parametrize("deploy", ["none", "comfy"])
def test_folded_smoothing_is_counted(deploy: str) -> None:
    plan = _plan(Normed(), ROW, "quantizer=smoothquant", f"quantizer.deploy={deploy}", "precisions=[w8a8]")
    (estimate,) = plan.estimates
    assert estimate.folded == (2 if deploy == "comfy" else None)
    text = "smoothing is folded into the norm or linear before 2 of 3 layers (w8a8)"
    assert (text in render(plan, "smoothquant")) == (deploy == "comfy")
    assert estimate.bytes == _bytes(Normed, ROW, presets.smoothquant("w8a8", deploy=deploy))


def test_tied_parameters_are_told() -> None:
    plan = _plan(Tied(), ROW, "precisions=[w8a8]")
    assert (plan.parameters, plan.tied) == (576, 512)
    assert "the rest 0; 512 are tied" in render(plan, "segquant_g")


@pytest.mark.parametrize("precision", ["w8a8", "w4a8", "w4a16", "w4a4"])
def test_convolutions_get_groups_that_fit(precision: str) -> None:
    inputs = {"x": torch.randn(1, 3, 8, 8)}
    plan = _plan(Net(), inputs, "quantizer=rtn", "quantizer.convolutions=true", f"precisions=[{precision}]",
                 *(["quantizer.skip=[out]"] if precision in ("w4a16", "w4a4") else []))  # fmt: skip
    (estimate,) = plan.estimates
    assert set(estimate.left) <= {"d", "out"} and not estimate.unfit
    skip = ("out",) if "out" in estimate.left else ()
    assert estimate.bytes == _bytes(Net, inputs, presets.rtn(precision, convolutions=True, skip=skip))
    assert estimate.plain <= estimate.bytes


def _unet() -> nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def test_a_unet_at_a_group_precision() -> None:
    inputs = {"sample": torch.randn(1, 3, 8, 8), "timestep": torch.tensor([1])}
    plan = _plan(_unet(), inputs, "quantizer.convolutions=true", "quantizer=rtn", "precisions=[w4a8]")
    (estimate,) = plan.estimates
    assert not estimate.left
    assert estimate.plain == estimate.bytes == _bytes(_unet, inputs, presets.rtn("w4a8", convolutions=True))


def test_grouped_convolutions_are_named() -> None:
    plan = _plan(Net(), {"x": torch.randn(1, 3, 8, 8)}, "quantizer.convolutions=true", "precisions=[w8a8]")
    assert "  w8a8: d: a grouped convolution" in render(plan, "segquant_g", convolutions=True).splitlines()


def test_a_module_whose_layers_are_never_called() -> None:
    plan = _plan(Uncalled(), ROW, "precisions=[w8a8]")
    assert plan.operations is None and plan.estimates[0].dual_operations is None
    assert "1 layer never called: a" in render(plan, "segquant_g")


def test_rows_that_depend_on_values() -> None:
    assert count_rows(Branch(), {**ROW, "t": torch.tensor([5.0])}) == {"a": 4}
    assert count_rows(Branch(), {**ROW, "t": torch.tensor([1.0])}) == {"a": 2}
    rows = count_rows(Experts(), {"x": torch.randn(10, 16)})
    assert rows is not None and rows["route"] == 10 == rows["experts.0"] + rows["experts.1"]
    assert count_rows(Branch(), {**ROW, "t": torch.empty(1, device="meta")}) is None


def test_shapes_of_the_arguments_are_told() -> None:
    plan = _plan(Branch(), {**ROW, "t": torch.tensor(5.0)}, "precisions=[w8a8]")
    assert plan.inputs == {"x": (2, 16), "t": ()}
    assert "counted at: x 2×16, t a number" in render(plan, "segquant_g")


class Mixed(nn.Module):
    """A group of 32 divides the input of `b` alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 64), nn.Linear(64, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))


OVERRIDES = {"zz": {"alpha": 0.3}}


@pytest.mark.parametrize(
    ("overrides", "method"),
    [
        (["quantizer=svdquant", "quantizer.rank=64"], presets.svdquant("w4a8_channel", rank=64)),
        (["quantizer.skip=['*']"], presets.segquant_g("w4a8_channel", skip=("*",))),
        (["+quantizer.overrides={zz: {alpha: 0.3}}"], presets.segquant_g("w4a8_channel", overrides=OVERRIDES)),
    ],
)  # fmt: skip
def test_what_quantize_refuses_is_refused_in_the_same_words(overrides: list[str], method: Method) -> None:
    with pytest.raises(QuantizationError) as refused:
        quantize_(Mixed().eval(), method, [ROW])
    with pytest.raises(QuantizationError) as planned:
        _plan(Mixed(), ROW, *overrides, "precisions=[w4a8_channel]")
    assert str(planned.value) == str(refused.value)


def test_layers_that_must_be_skipped_are_told() -> None:
    with pytest.raises(QuantizationError) as refused:
        quantize_(Mixed().eval(), presets.rtn("w4a8"), [ROW])
    plan = _plan(Mixed(), ROW, "quantizer=rtn", "precisions=[w8a8,w4a8]")
    assert [estimate.unfit for estimate in plan.estimates] == [(), ("a",)]
    text = render(plan, "rtn")
    assert "1 layer unquantized; refused until 1 skipped" in text and f"  w4a8: {refused.value}" in text
    assert plan.estimates[1].bytes == _bytes(Mixed, ROW, presets.rtn("w4a8", skip=("a",)))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["model.target=users:fails"], "users:fails fails (FileNotFoundError: no weights at /x)"),
        (["model.target=users:needs"], "it is called without arguments and wants some (missing a required argument"),
        (["model.target=users:instance"], "instance is a Sequential, no function"),
        (["model.target=users:lazy"], "call it once"),
        (["model.target=bad_syntax:build"], "importing bad_syntax fails (SyntaxError: "),
        (["model.target=bad_import:build"], "importing bad_import fails (ValueError: at import)"),
        (["model.repo=bad_name//x"], "'bad_name//x' cannot be a repository of the hub"),
    ],
)
def test_a_fault_of_the_user_is_one_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "users.py").write_text(USER_MODULE)
    (tmp_path / "bad_syntax.py").write_text("def build(:\n")
    (tmp_path / "bad_import.py").write_text('raise ValueError("at import")\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "users", raising=False)
    printed = _refused(arguments, monkeypatch, capsys)
    assert sentence in printed


def test_a_module_named_like_one_of_diffusers_needs_its_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its class's name is known, but it has no configuration that the sizes would follow from."""
    (tmp_path / "namesake.py").write_text(
        "from torch import nn\n\nclass FluxTransformer2DModel(nn.Sequential):\n    pass\n\n"
        "def build():\n    return FluxTransformer2DModel(nn.Linear(16, 16))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "namesake", raising=False)
    line = _refused(["model.target=namesake:build"], monkeypatch, capsys)
    assert "FluxTransformer2DModel has no configuration (config)" in line and "model.inputs=" in line


def _refused(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "argv", ["segquant-plan", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    printed = capsys.readouterr()
    assert stopped.value.code == 1 and printed.out == ""
    (line,) = printed.err.strip().splitlines()
    return line


def test_a_pipeline_without_a_denoiser_that_we_can_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {
        "transformer": [None, None],
        "prior": ["diffusers", "PriorTransformer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FooPipeline", **parts}))
    line = _refused([f"model.path={tmp_path}"], monkeypatch, capsys)
    assert "FooPipeline has no denoiser" in line and line.endswith("set model.denoiser to one of prior")
    line = _refused([f"model.path={tmp_path}", "quantize=[vae]"], monkeypatch, capsys)
    assert line.endswith(f"the pipeline in {tmp_path} has no vae, only prior, scheduler, tokenizer; correct quantize")
