"""What is asserted of every denoiser class; the classes are spread over test_every_*.py.

plans.json beside this file holds what each plan counts to, see `counted`. After a change of the rules, or of a tiny
configuration, write it anew, look at the difference, and explain it:

    python -m tests.segquant.graph.every_denoiser               # all classes, a few minutes
    python -m tests.segquant.graph.every_denoiser NAME …        # these alone
"""

from __future__ import annotations

import fnmatch
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from segquant.graph.capture.calls import cuttable_layers
from segquant.graph.capture.capture import capture
from segquant.graph.capture.export import exported
from segquant.graph.capture.record import recorded
from segquant.graph.find import segments_of
from segquant.graph.segments import Segments
from tests.segquant.graph.denoisers.tiny_denoisers import Table, exported_classes
from tests.segquant.graph.denoisers.tiny_denoisers_controlnets import CONTROLNETS, prepared
from tests.segquant.graph.denoisers.tiny_denoisers_flux import FLUX
from tests.segquant.graph.denoisers.tiny_denoisers_image import IMAGE
from tests.segquant.graph.denoisers.tiny_denoisers_image2 import IMAGE2
from tests.segquant.graph.denoisers.tiny_denoisers_other import OTHER
from tests.segquant.graph.denoisers.tiny_denoisers_unets import UNETS
from tests.segquant.graph.denoisers.tiny_denoisers_video import VIDEO
from tests.segquant.graph.denoisers.tiny_denoisers_video2 import VIDEO2
from tests.segquant.graph.denoisers.tiny_denoisers_video3 import VIDEO3

CLASSES = exported_classes()
TABLE: Table = FLUX | IMAGE | IMAGE2 | VIDEO | VIDEO2 | VIDEO3 | OTHER | UNETS | CONTROLNETS
NOT_CAPTURED = {
    "ControlNetXSAdapter": "its forward raises: it holds layers for UNetControlNetXSModel, which plans them",
    "MotionAdapter": "its forward does nothing: it holds layers for UNetMotionModel, which plans them",
}
# torch.export refuses these.
RECORDED = {
    "HiDreamImageTransformer2DModel": "counts the tokens of each expert with numpy",
    "HunyuanVideo15Transformer3DModel": "branches on whether the picture's embedding is all zero",
    "Lumina2Transformer2DModel": "keeps the lengths of the captions in a set",
    "OmniGenTransformer2DModel": "branches on the largest position",
    "QwenImage21Transformer2DModel": "loops over which tokens are a picture's",
    "WanAnimate2Transformer3DModel": "takes a cache object",
}
# Their operators cannot be recorded; torch.export takes them.
EXPORTED_ONLY = {"AnyFlowFARTransformer3DModel": "makes its block mask by vmap, which a recorded run does not take"}
# Layers that a forward of these arguments does not call.
UNCALLED = {
    "Cosmos3OmniTransformer": ("lm_head",),
    "MiniMaxMusic3RVQDepthDecoder": ("projection", "audio_heads.*"),
    "SanaWMLTX2RefinerTransformer3DModel": ("audio_*", "av_cross_attn_*", "*.audio_*", "*.video_to_audio_attn.*"),
    "SanaWMTransformer3DModel": ("*.plucker_proj", "*_cam", "blocks.1.attn.beta_proj", "blocks.1.attn.gate_proj"),
    "UniDiffuserModel": ("transformer.pos_embed.proj",),
}
# Layers whose weight a function takes: their own forward is not called (nn.MultiheadAttention and its like).
BY_WEIGHT = {
    "ControlNetUnionModel": ("*.attn.out_proj",),
    "HunyuanDiT2DControlNetModel": ("*.pooler.?_proj",),
    "HunyuanDiT2DModel": ("*.pooler.?_proj",),
    "HunyuanDiT2DMultiControlNetModel": ("*.pooler.?_proj",),
}
# One of each kind whose two captures are compared also where slow tests are left out (`-m "not slow"`).
ALWAYS_COMPARED = (
    "FluxTransformer2DModel",
    "SD3ControlNetModel",
    "SanaTransformer2DModel",
    "StableAudioDiTModel",
    "UNet2DConditionModel",
    "WanTransformer3DModel",
)
CPU = torch.device("cpu")
PLANS = Path(__file__).with_name("plans.json")
Counts = dict[str, dict[str, Any]]


def built(name: str) -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    config, inputs = TABLE[name]()
    return prepared(name, CLASSES[name](**config)).eval(), inputs


def compared(names: Iterable[str]) -> list[Any]:
    """Parameters for `check_both_captures`, marked slow but for one of each kind; a plain test run has them all."""
    return [
        name if name in ALWAYS_COMPARED else pytest.param(name, marks=pytest.mark.slow)
        for name in sorted(names)
        if name not in EXPORTED_ONLY
    ]


def check_planned(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """The graph calls each layer as often as a real forward does; the plan's sizes add up; it counts to plans.json."""
    model, inputs = built(name)
    with caplog.at_level("INFO", logger="segquant"):
        captured = capture(model, (), inputs)
    assert ("exported instead" in caplog.text) == (name in EXPORTED_ONLY)

    layers, called = cuttable_layers(model), _called(*built(name))
    assert layers and list(captured.calls) == list(layers)
    by_weight = _matching(layers, BY_WEIGHT.get(name, ()))
    assert {key for key in layers if not called[key]} - by_weight == _matching(layers, UNCALLED.get(name, ()))
    for key, calls in captured.calls.items():
        assert len(calls) == (1 if key in by_weight else called[key]), key

    plan = segments_of(captured)
    assert counted(layers, plan) == _plans()[name]
    for key, found in plan.items():
        weight = layers[key].weight
        rows, columns = weight.shape[0], weight.shape[1] * getattr(layers[key], "groups", 1)
        assert (sum(found.output or (rows,)), sum(found.input or (columns,))) == (rows, columns), key


def check_both_captures(name: str) -> None:
    """Exported and recorded, the plan is the same; where torch.export refuses, the table says so."""
    model, inputs = built(name)
    if name in RECORDED:
        with pytest.raises(Exception):  # noqa: B017 - whatever torch.export raises
            exported(model, (), inputs, CPU)
        return
    plan = segments_of(exported(model, (), inputs, CPU))
    assert segments_of(recorded(model, (), inputs, CPU)) == plan
    assert counted(cuttable_layers(model), plan) == _plans()[name]


def counted(layers: Mapping[str, nn.Module], plan: Mapping[str, Segments]) -> Counts:
    """For linears and for convolutions: how many there are, and of how many what was found.

    "output" and "input" say how many layers are cut into how many pieces; "pieces" counts the activations of the
    pieces of inputs, "activation" those of whole inputs.
    """
    result: Counts = {}
    for label, kind in (("linear", nn.Linear), ("conv", nn.Conv2d)):
        found = [plan[name] for name, layer in layers.items() if isinstance(layer, kind)]
        pieces = [name for segments in found for name in segments.input_activations or () if name]
        columns = {
            "output": Counter(str(len(segments.output)) for segments in found if segments.output),
            "input": Counter(str(len(segments.input)) for segments in found if segments.input),
            "activation": Counter(segments.activation for segments in found if segments.activation),
            "pieces": Counter(pieces),
        }
        if found:
            filled = {key: dict(column) for key, column in columns.items() if column}
            result[label] = {"layers": len(found)} | filled
    return result


def write_plans(names: Iterable[str]) -> None:
    """Bring the entries of these classes in plans.json up to date; one line each, sorted."""
    known = _plans() if PLANS.exists() else {}
    for name in names:
        model, inputs = built(name)
        known[name] = counted(cuttable_layers(model), segments_of(capture(model, (), inputs)))
        print(name, json.dumps(known[name]), flush=True)
    lines = [f" {json.dumps(name)}: {json.dumps(known[name], sort_keys=True)}" for name in sorted(known)]
    PLANS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _plans() -> dict[str, Counts]:
    return json.loads(PLANS.read_text(encoding="utf-8"))


def _called(model: nn.Module, inputs: dict[str, Any]) -> Counter[str]:
    """How often a real forward calls each layer, under each of its names, by hooks."""
    counts: Counter[str] = Counter()
    names: dict[nn.Module, list[str]] = {}
    for name, layer in cuttable_layers(model).items():
        names.setdefault(layer, []).append(name)
    for layer in names:
        layer.register_forward_pre_hook(lambda module, args: counts.update(names[module]))
    with torch.no_grad():
        model(**inputs)
    return counts


def _matching(names: Iterable[str], patterns: Iterable[str]) -> set[str]:
    return {name for name in names for pattern in patterns if fnmatch.fnmatchcase(name, pattern)}


if __name__ == "__main__":
    write_plans(sys.argv[1:] or sorted(TABLE))
