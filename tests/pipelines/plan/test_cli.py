"""`segquant-plan`: what it prints, and that its sizes are those of a model that is really quantized."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from segquant import QuantLinear, presets, quantize_
from segquant.modules.tensors import model_weight_bytes
from segquant_bench.pipelines.plan.cli import main
from segquant_bench.pipelines.plan.config import compose_plan, methods_of
from segquant_bench.pipelines.plan.counts import alike
from segquant_bench.pipelines.plan.sizes import component_plan
from segquant_bench.pipelines.plan.source import Source
from segquant_bench.pipelines.plan.text import amount, percent, pieces, size, table
from tests.tiny import tiny_denoiser

USER_MODULE = """
import torch
from torch import nn

class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(64, 128), nn.Linear(128, 64)
        self.unused = nn.Linear(64, 64)
    def forward(self, x):
        one, other = self.up(x).chunk(2, -1)
        return self.down(torch.cat([nn.functional.silu(one), other], -1))

def alone():
    return Gated()

def both():
    with torch.device("meta"):
        return Gated(), {"x": torch.empty(3, 5, 64)}

def wrong():
    return "a module"

def no_linear():
    return nn.ReLU(), {"input": torch.zeros(2, 3)}

number = 3
"""


@dataclasses.dataclass(frozen=True)
class Printed:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def component(self) -> dict:
        """The only component of --json."""
        (component,) = json.loads(self.out)["components"]
        return component


Command = Callable[..., Printed]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Call `segquant-plan` in this process, in a folder with my_module.py."""
    (tmp_path / "my_module.py").write_text(USER_MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_module", raising=False)

    def call(*arguments: str) -> Printed:
        monkeypatch.setattr(sys, "argv", ["segquant-plan", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        return Printed(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline directory of which only the JSON files are there."""
    root = tmp_path_factory.mktemp("pipeline")
    model = tiny_denoiser()
    model.save_config(root / "transformer")
    (root / "model_index.json").write_text(
        json.dumps(
            {
                "_class_name": "StableDiffusion3Pipeline",
                "transformer": ["diffusers", "SD3Transformer2DModel"],
                "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
            }
        )
    )
    return root


def test_a_local_pipeline_without_weights(command: Command, pipeline: Path) -> None:
    printed = command(f"model.path={pipeline}", "model.dtype=float32", "precisions=[w8a8_tensor,w4a16]")
    assert printed.code == 0, printed.err
    assert f"denoiser: SD3Transformer2DModel, {pipeline / 'transformer' / 'config.json'}" in printed.out
    lines = [line.split() for line in printed.out.splitlines()]
    # width 64: 2 norms of block 0 and norm1 of block 1 are chunked by 6, norm1_context of block 1 and norm_out by 2
    assert ["output", "cut", "6", "×", "64", "3"] in [line[:6] for line in lines]
    assert ["output", "cut", "2", "×", "64", "2"] in [line[:6] for line in lines]
    assert any(
        line[:1] == ["w4a16"] and line[1:4] == ["int4", "group", "64,"] and line[4] == "bfloat16" for line in lines
    )
    assert "transformer_blocks.0.norm1.linear" not in printed.out
    listed = command(f"model.path={pipeline}", "--layers").out.splitlines()
    (line,) = [line for line in listed if line.startswith("  transformer_blocks.0.norm1.linear")]
    assert line.split()[1:] == ["384", "×", "64", "1", "6", "×", "64", "silu"]


def test_sizes_are_those_of_quantized_models(pipeline: Path) -> None:
    """Rounding needs no data; segquant_a at 4 bits has cuts, two scales, smoothing and low-rank branches."""
    torch.manual_seed(0)
    inputs = {
        "hidden_states": torch.randn(2, 4, 16, 16),
        "encoder_hidden_states": torch.randn(2, 5, 64),
        "pooled_projections": torch.randn(2, 64),
        "timestep": torch.tensor([10.0, 900.0]),
    }
    config = compose_plan([f"model.path={pipeline}", "quantizer=segquant_a", "precisions=[w8a8_dynamic,w8a8,w4a8]"])
    plan = component_plan(Source("denoiser", "here", tiny_denoiser(), inputs), methods_of(config), "float32")
    assert plan.bytes == model_weight_bytes(tiny_denoiser())
    estimates = {estimate.precision: estimate for estimate in plan.estimates}

    rounded = quantize_(tiny_denoiser(), presets.rtn("w8a8_dynamic"), [inputs])
    assert estimates["w8a8_dynamic"].plain == model_weight_bytes(rounded)
    at_8 = quantize_(tiny_denoiser(), presets.segquant_a("w8a8"), [inputs])
    assert estimates["w8a8"].bytes == model_weight_bytes(at_8)
    dual = [module for module in at_8.modules() if isinstance(module, QuantLinear) and any(module.layout.two_products)]
    assert estimates["w8a8"].dual == len(dual) > 0
    at_4 = quantize_(tiny_denoiser(), presets.segquant_a("w4a8", alpha=0.5), [inputs])
    assert 0.99 * estimates["w4a8"].bytes < model_weight_bytes(at_4) <= estimates["w4a8"].bytes


def test_a_module_of_the_user(command: Command) -> None:
    found = command("model.target=my_module:both", "--json", "model.dtype=float32").component
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert layers["up"]["segments"]["output"] == [64, 64] and layers["up"]["rows"] == 15
    assert layers["down"]["segments"]["input_activations"] == ["silu", None]
    assert layers["unused"]["rows"] == 0
    assert found["operations"] == 15 * (64 * 128 + 128 * 64)
    # the second product takes one half of down's input
    (dual,) = found["dual"]
    assert (dual["like"], dual["operations"], dual["share"]) == ("down", 15 * 64 * 64, 0.25)
    assert {each["precision"]: each["dual"] for each in found["estimates"]} == {
        **dict.fromkeys(("w8a8_tensor", "w8a8", "w8a8_dynamic", "fp8", "w4a8_channel", "w4a8", "w4a4"), 1),
        "w4a16": 0,
    }
    text = command("model.target=my_module:both").out
    assert (
        "at float32; " in text and "at bfloat16; " in command("model.target=my_module:both", "model.dtype=bfloat16").out
    )
    assert "1 layer never called: unused" in text and "silu 1" in text


def test_shapes_for_a_module_alone(command: Command) -> None:
    printed = command("model.target=my_module:alone", "model.inputs={x: [2, 64]}", "--json")
    assert printed.code == 0, printed.err
    assert [layer["rows"] for layer in printed.component["layers"]] == [2, 2, 0]


def test_without_cuts_and_signs(command: Command) -> None:
    found = command("model.target=my_module:both", "quantizer=smoothquant", "--json").component
    refused = {each["precision"]: each["refused"] for each in found["estimates"] if each["refused"]}
    assert set(refused) == {"w4a16"} and "does not quantize activations" in refused["w4a16"]
    assert all(each["dual"] == 0 for each in found["estimates"]) and found["dual"] == []
    text = command("model.target=my_module:both", "quantizer=smoothquant").out
    assert "w4a16: smoothquant at w4a16" in text


def test_layers_that_a_precision_cannot_take_are_named(command: Command) -> None:
    found = command("model.target=my_module:both", "quantizer.skip=[down]", "precisions=[w8a8]", "--json").component
    (estimate,) = found["estimates"]
    assert estimate["left"] == {"down": "left out by the quantizer"}
    assert estimate["dual"] == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "there is no model to plan; give model=NAME"),
        (["model=flux_dev"], "model=flux_dev is no model; did you mean 'flux1_dev'"),
        (["model=flux1_dev", "model.target=my_module:both"], "more than one model is named, model.repo="),
        (["model=tiny_random"], "model.path=DIRECTORY"),
        (["model=qwen_image", "quantize=[denoiser,controlnet]"], "this model is a single module"),
        (["model=sdxl", "precisions=[w8a9]"], "precisions='w8a9' is not known; did you mean 'w8a8'"),
        (["model=sdxl", "quantizer=auto"], "quantizer=auto decides for every layer by data"),
        (["model=sdxl", "quantizer=quanto"], "quantizer=quanto"),
        (["model=sdxl", "quantizer.alpha=2"], "alpha must lie in"),
        (["model=sdxl", "~quantizer._target_"], "quantizer names no method"),
        (["model=sdxl", "quantizer=null"], "give every group the name of an option"),
        (["model=sdxl", "model.nmae=x"], "there is no key 'model.nmae'"),
        (["model.target=my_module"], "is no MODULE:FUNCTION"),
        (["model.target=no_module:build"], "no_module cannot be imported"),
        (["model.target=my_module:build"], "my_module has no 'build'"),
        (["model.target=my_module:number"], "number is a int, no function"),
        (["model.target=my_module:wrong"], "returned str; return an nn.Module"),
        (["model.target=my_module:alone"], "the arguments of Gated.forward are not known"),
        (["model.target=my_module:alone", "model.inputs={x: [2, many]}"], "describes no tensors|of Gated"),
        (["model.target=my_module:no_linear"], "ReLU"),
    ],
)
def test_bad_input_is_one_sentence(command: Command, arguments: list[str], sentence: str) -> None:
    printed = command(*arguments)
    assert printed.code == 1 and printed.out == ""
    (line,) = printed.err.strip().splitlines()
    assert line.startswith("segquant-plan: ")
    assert any(part in line for part in sentence.split("|"))


def test_bad_directories(command: Command, pipeline: Path, tmp_path: Path) -> None:
    def sentence(*arguments: str) -> str:
        printed = command(*arguments)
        assert printed.code == 1 and printed.out == ""
        return printed.err

    assert "does not exist" in sentence(f"model.path={tmp_path / 'nothing'}")
    assert "has no model_index.json" in sentence(f"model.path={tmp_path}")
    told = sentence(f"model.path={pipeline}", "model.denoiser=unet")
    assert "has no denoiser 'unet'; set model.denoiser to one of transformer\n" in told
    assert "has no denoiser 'text_encoder'" in sentence(f"model.path={pipeline}", "model.denoiser=text_encoder")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    assert "names no class of diffusers" in sentence(f"model.path={tmp_path}")
    (tmp_path / "config.json").write_text('{"_class_name": "SD3Transformer3DModel"}')
    assert "has no class 'SD3Transformer3DModel'" in sentence(f"model.path={tmp_path}")
    (tmp_path / "config.json").write_text("{")
    assert "is not readable JSON" in sentence(f"model.path={tmp_path}")


@pytest.mark.parametrize(
    ("model", "argument", "shapes"),
    [
        ("emoji_sd3", "hidden_states", ([1, 16, 8, 8], [1, 16])),
        ("emoji_flux", "hidden_states", ([1, 16, 64], [1, 12])),
        ("emoji_sdxl", "sample", ([1, 16, 8, 8], [1, 16])),
    ],
)
def test_a_model_is_counted_at_its_own_sizes(command: Command, model: str, argument: str, shapes: tuple) -> None:
    """64 × 64 pictures, prompts of 16 tokens of CLIP or 12 of T5."""
    found = command(f"model={model}", "precisions=[w8a8]", "--json").component
    assert found["inputs"][argument] == shapes[0] and found["inputs"]["encoder_hidden_states"][:2] == shapes[1]
    if model != "emoji_flux":  # which counts four latents as one
        (larger,) = json.loads(command(f"model={model}", "model.call.height=128", "--json").out)["components"]
        assert larger["inputs"][argument] == [1, 16, 16, 8] and larger["operations"] > found["operations"]


def test_repositories(command: Command, pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cached configurations come before shipped ones, and the network last, for one file."""
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

    asked: list[tuple[str, str]] = []

    def download(repo: str, file: str, revision: str | None = None) -> str:
        asked.append((repo, file))
        if repo == "me/gated":
            raise GatedRepoError.__new__(GatedRepoError)
        raise LocalEntryNotFoundError("offline")

    cached = {("me/cached", "transformer/config.json"): str(pipeline / "transformer" / "config.json")}
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda repo, file, revision=None: cached.get((repo, file))
    )
    assert command("model.repo=me/cached", "precisions=[w8a8]", "--json").component["class_name"].startswith("SD3")
    assert asked == []
    printed = command("model.repo=me/unknown")
    assert printed.code == 1 and "neither shipped, nor cached here, nor reachable" in printed.err
    assert asked == [("me/unknown", "transformer/config.json")]
    assert "me/gated is gated" in command("model.repo=me/gated").err


def test_numbers_read_well() -> None:
    assert [amount(n) for n in (7, 999, 1000, 340e6, 11.9e9, 999_600_000)] == ["7", "999", "1.00 k", "340 M", "11.9 B",
                                                                              "1.00 B"]  # fmt: skip
    assert [size(n) for n in (12, 23_802_816_384, 717e6)] == ["12 B", "23.8 GB", "717 MB"]
    assert [percent(x) for x in (None, 0, 1e-5, 0.3333)] == ["?", "0 %", "< 0.1 %", "33.3 %"]
    assert pieces((64,) * 24) == "24 × 64" and pieces((3072, 12288)) == "3072 + 12288"
    assert pieces((1, 2, 3, 4, 5)) == "1 + 2 + 3 + 4 + …"
    assert alike(["a.0.ff.net.2", "a.1.ff.net.2", "b"]) == ("a.*.ff.net.2", "b")
    assert table(["", "n", "last"], [["a", "10", "x"], ["bb", "2", "y"]]).splitlines() == [
        "       n  last",
        "  a   10  x",
        "  bb   2  y",
    ]
