"""What other people's tools cannot do is said in a sentence."""

from __future__ import annotations

import importlib.metadata
import inspect

import pytest
import torch
from torch import nn

from segquant import PRECISIONS
from segquant_bench.pipelines import peers
from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.errors import PipelineError
from tests.pipelines.conftest import compose_config
from tests.pipelines.peers.support import CAN, peer


@pytest.mark.parametrize("name", CAN)
def test_a_precision_that_a_tool_cannot_do(name: str) -> None:
    for precision in PRECISIONS:
        if precision not in CAN[name]:
            with pytest.raises(PipelineError, match=f"cannot do precision={precision}; it can do .*{CAN[name][-1]}"):
                getattr(peers, name)(precision)
    with pytest.raises(ValueError, match="w8a9"):
        getattr(peers, name)("w8a9")


@pytest.mark.parametrize("name", [*CAN, "sdnq_svd"])
def test_configuration_files_show_every_argument_at_its_default(name: str) -> None:
    shown = validate(compose_config([f"quantizer={name}", "precision=w8a8"])).quantizer
    function = getattr(peers, shown.pop("_target_").removeprefix("segquant_bench.pipelines.peers."))
    assert shown.pop("name", name) == name and shown.pop("precision") == "w8a8"
    defaults = {key: item.default for key, item in inspect.signature(function).parameters.items() if key != "precision"}
    changed = {"svd": True} if name == "sdnq_svd" else {}
    assert {**shown, "skip": tuple(shown["skip"])} == {**defaults, **changed}


@pytest.mark.parametrize("name", CAN)
def test_a_missing_tool_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(PipelineError, match=rf"quantizer={name} needs .*pip install '\.\[peers\]' in a clone"):
        getattr(peers, name)(CAN[name][0])


def test_options_out_of_range() -> None:
    for name, options in (
        ("modelopt_smoothquant", {"alpha": 2.0}),
        ("modelopt_awq", {"alpha_step": 0.0}),
        ("modelopt_svdquant", {"rank": 0}),
        ("sdnq", {"rank": 0}),
        ("bnb_int8", {"threshold": -1.0}),
        ("torchao_mx", {"scaling": "up"}),
        ("torchao_intx", {"qparams": "best"}),
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            getattr(peers, name)(CAN[name][0], **options)


class Branched(nn.Module):
    """One linear that is called, one that never is, one whose width no group divides."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused, self.odd = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(72, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x) + self.odd(torch.nn.functional.pad(x, (0, 8)))


def test_layers_that_cannot_be_quantized_are_named() -> None:
    batches = [(torch.randn(40, 64),)]
    with pytest.raises(PipelineError, match="groups of 64 .* odd.*quantizer.skip"):
        peer("torchao_int4", "w4a16").quantize_(Branched().eval(), batches)
    with pytest.raises(PipelineError, match="never called unused; add them to quantizer.skip"):
        peer("torchao_int8_static", "w8a8").quantize_(Branched().eval(), batches)
    with pytest.raises(PipelineError, match="finds no linear"):
        peer("torchao_int4", "w4a16", skip=["*"]).quantize_(Branched().eval(), batches)
    with pytest.raises(PipelineError, match=r"multiples of 16, but 0 has \[20, 64\]; add it to quantizer.skip"):
        peer("torchao_nvfp4", "nvfp4").quantize_(nn.Sequential(nn.Linear(64, 20)).eval(), batches)
    peer("torchao_int8_static", "w8a8", skip=["unused"]).quantize_(Branched().eval(), batches)
    with pytest.raises(PipelineError, match=r"quantizer\.skip: 'unusd' matches none of the model's \d linears"):
        peer("torchao_int8_static", "w8a8", skip=["unused", "unusd"]).quantize_(Branched().eval(), batches)


@pytest.mark.parametrize(("name", "precision"), [("torchao_fp8", "fp8_dynamic"), ("torchao_nvfp4", "nvfp4")])
def test_weights_of_zeros_that_would_be_nan_are_named(name: str, precision: str) -> None:
    model = nn.Sequential(nn.Linear(64, 32)).eval()
    nn.init.zeros_(model[0].weight)
    with pytest.raises(PipelineError, match=f"{name} makes NaN of zeros in the weight of 0; add it to quantizer.skip"):
        peer(name, precision).quantize_(model, [(torch.randn(4, 64),)])


def test_inputs_of_two_shapes_are_named() -> None:
    model = nn.Sequential(nn.Linear(64, 64)).eval()
    batches = [(torch.randn(2, 64),), (torch.randn(2, 3, 64),)]
    with pytest.raises(PipelineError, match=r"0 sees \[2, 3\] axes"):
        peer("torchao_int8_static", "w8a8").quantize_(model, batches)
