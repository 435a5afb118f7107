"""Whatever is given to a public function: a right result, or one sentence of ours, never torch's or Python's error."""

from __future__ import annotations

import contextlib
import copy
import inspect
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import segquant
from segquant import Method, QuantizationError, QuantScheme, QuantSpec, Segments, presets, registry
from segquant.arguments import PRESETS
from segquant.calibrators.reconstruction import Reconstruction
from segquant.checks import described
from segquant.method.parts import Budget, Cuts, Targets
from segquant.observers.stats import InputStats
from tests.segquant.support import tensor

SCHEME = QuantScheme(QuantSpec("int8", "channel"), QuantSpec("int8", "token", dynamic=True))
BATCHES = [tensor(4, 8, seed=seed) for seed in range(4)]


def model() -> nn.Sequential:
    found = nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 4))
    for layer in (found[0], found[2]):
        layer.weight.data = tensor(*layer.weight.shape, seed=3)
    return found


FLOAT, QUANTIZED = model(), segquant.quantize_(model(), presets.rtn(), BATCHES)
STATS = segquant.observe(FLOAT, BATCHES, gram=True, salience=True)


class Mine:
    def __repr__(self) -> str:
        return "Mine\nof two lines"


VALUES: list[Any] = [
    None, True, 0, 3, -1, 10**30, 1.5, -0.5, float("nan"), float("inf"), 1j, "", "x", "0", b"x", Path("nowhere"), [],
    [1], ["0"], [None], [BATCHES[0]], (), (1, "x"), {}, {"0": 1}, {1: 2}, {"name": "rtn"}, {"x": BATCHES[0]}, {3},
    iter([]), BATCHES[0], torch.tensor(3), nn.Linear(8, 8), FLOAT, QUANTIZED[0], Mine(), Mine, len, lambda *_: None,
    presets.rtn, presets.rtn(), SCHEME, SCHEME.weight, Segments(), STATS["0"], STATS, torch.float32,
    torch.device("cpu"), inspect,
]  # fmt: skip


def quantizing(function: Callable[..., Any]) -> Callable[..., Any]:
    """On a model of its own."""
    return lambda model, **given: function(copy.deepcopy(model) if isinstance(model, nn.Module) else model, **given)


def registering(part: Any, name: Any) -> Any:
    before = {slot: dict(table) for slot, table in registry._TABLES.items()}
    try:
        return segquant.register(part, name=name)
    finally:
        for slot, table in before.items():
            registry._TABLES[slot].clear()
            registry._TABLES[slot].update(table)


def saving(**given: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        return segquant.save_quantized(**given)


def filled(**given: Any) -> InputStats:
    stats = InputStats(**given)
    stats.update(torch.ones(3, min(stats.in_features, 9)), None)
    return stats


QUANTIZE = {"model": FLOAT, "method": presets.gptq("w8a8"), "batches": BATCHES, "segments": None, "stats": None,
            "progress": None, "memory_limit": None, "streaming": False, "workers": 1, "combine": None}  # fmt: skip
MODELS = {"float_model": FLOAT, "quant_model": QUANTIZED, "batches": BATCHES}
COMMON = {"seglinear": False, "dualscale": False, "rotate": False, "ranges": "amax", "percentile": 99.0,
          "bias_correction": False, "cuts": "graph", "skip": (), "overrides": {}, "on_uncalled": "error",
          "convolutions": False, "seed": 0}  # fmt: skip
OWN = {"smoothquant": {"alpha": 0.5}, "gptq": {"act_order": True, "damp": 0.01},
       "gptq_mse": {"act_order": True, "damp": 0.01}, "awq": {"alpha": 0.5},
       "quarot": {"calibrator": "gptq"}, "vidit_q": {"alpha": 0.5}, "q_diffusion": {"reconstruction": None},
       "svdquant": {"rank": 4, "svd": "exact", "iterations": 0}, "auto": {"budget": None}}  # fmt: skip
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "observe": (segquant.observe, {
        "model": FLOAT, "batches": BATCHES, "gram": False, "split_gram": False, "salience": False, "reservoir": 8,
        "seed": 0, "only": None, "progress": None, "total": 0,
    }),
    "quantize_": (quantizing(segquant.quantize_), QUANTIZE),
    "quantize_with_outcome_": (quantizing(segquant.quantize_with_outcome_), QUANTIZE),
    "guidance": (segquant.guidance, {"scale": 4.0}),
    "find_segments": (segquant.find_segments, {"model": FLOAT, "args": (BATCHES[0],), "kwargs": None}),
    "from_float": (segquant.QuantLinear.from_float, {
        "linear": FLOAT[0], "method": presets.rtn("w8a8"), "stats": STATS["0"], "segments": None, "name": "x",
    }),
    "QuantLinear": (segquant.QuantLinear, {"layout": QUANTIZED[0].layout}),
    "backends": (segquant.backends, {"model": QUANTIZED}),
    "set_backend_": (segquant.set_backend_, {
        "model": QUANTIZED, "name": "reference", "fallback": None, "strict": False,
    }),
    "model_weight_bytes": (segquant.model_weight_bytes, {"model": FLOAT}),
    "layer_errors": (segquant.layer_errors, {**MODELS, "layers": None}),
    "output_error": (segquant.output_error, MODELS),
    "output_errors": (segquant.output_errors, MODELS),
    "load_quantized": (segquant.load_quantized, {"directory": "nowhere", "model": None, "backend": "reference"}),
    "read_outcome": (segquant.read_outcome, {"directory": "nowhere"}),
    "register": (registering, {"part": SCHEME, "name": None}),
    "export_onnx": (segquant.export_onnx, {
        "model": FLOAT, "directory": "x", "args": (BATCHES[0],), "kwargs": None, "profile": "ort", "dynamic": True,
        "attention": "float", "attention_batches": None,
    }),
    "export_package": (segquant.export_package, {"model": FLOAT, "path": "x", "args": (BATCHES[0],), "kwargs": None}),
    "export_torchao": (segquant.export_torchao, {"model": FLOAT, "directory": "x", "batch": None, "rest": "refuse"}),
    "export_comfy": (segquant.export_comfy, {
        "model": FLOAT, "path": "x", "rest": "refuse", "names": "comfy", "prefix": "",
    }),
    "save_quantized": (saving, {"model": QUANTIZED, "directory": "x", "outcome": None, "extra": None}),
    "Segments": (Segments, {
        "output": (3, 4), "input": (2, 2), "activation": None, "input_activations": (None, "silu"),
    }),
    "QuantSpec": (QuantSpec, {"dtype": "int8", "granularity": "group", "group_size": 4, "dynamic": False}),
    "QuantScheme": (QuantScheme, {"weight": SCHEME.weight, "input": SCHEME.input}),
    "QuantScheme.from_dict": (QuantScheme.from_dict, {"values": {"weight": {"dtype": "int8"}}}),
    "InputStats": (filled, {"name": "x", "in_features": 4, "reservoir": 8, "seed": 0, "keep_gram": True}),
    "Method": (Method, {field: getattr(presets.rtn(), field) for field in Method.__dataclass_fields__}),
    "Method.of": (Method.of, {
        "name": "x", "precision": "w8a8", "optimizer": "none", "calibrator": "gptq", "rank": 3, "budget": None,
        **COMMON,
    }),
    "Method.from_dict": (Method.from_dict, {"values": presets.rtn().to_dict()}),
    "Cuts": (Cuts, {"seglinear": False, "dualscale": False, "control": "graph"}),
    "Targets": (Targets, {"skip": (), "overrides": (), "on_uncalled": "error", "convolutions": False}),
    "Budget": (Budget, {"bytes": 2.0, "operations": 2.0, "average_bits": 5.0}),
    "Reconstruction": (Reconstruction, {
        name: field.default for name, field in Reconstruction.__dataclass_fields__.items()
    }),
    "AdaRound": (segquant.AdaRound, {"reconstruction": Reconstruction()}),
    "Outcome": (segquant.Outcome, {"method": presets.rtn(), "segments": {}, "passes": 1, "choices": None}),
    "Outcome.from_dict": (segquant.Outcome.from_dict, {"values": segquant.Outcome(presets.rtn()).to_dict()}),
    "plan": (presets.plan, {"precision": None, "path": "nowhere"}),
    **{
        name: (preset, {"precision": "w8a8_tensor", **(COMMON if name in ("rtn", "auto") else {}), **OWN.get(name, {})})
        for name, preset in PRESETS.items() if name != "plan"
    },
}  # fmt: skip


def test_all_public_functions_are_here() -> None:
    named = {name for name in segquant.__all__ if inspect.isfunction(getattr(segquant, name))}
    assert named <= CALLS.keys()


def sentence_of(call: Callable[[], Any]) -> str | None:
    """None for a result; the message of an error that segquant raised itself."""
    try:
        call()
    except (QuantizationError, ValueError, TypeError) as error:
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        assert place is not None and "segquant" in Path(place.tb_frame.f_code.co_filename).parts, repr(error)
        line = inspect.getsource(place.tb_frame.f_code).splitlines()
        start = place.tb_lineno - place.tb_frame.f_code.co_firstlineno
        assert any("raise " in text for text in line[max(0, start - 6) : start + 1]), repr(error)
        return str(error)
    return None


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CALLS)
def test_every_argument_of_every_type(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some of the values are good names of folders
    function, good = CALLS[name]
    if name not in ("load_quantized", "read_outcome", "plan", "register") and "export" not in name:
        assert sentence_of(lambda: function(**good)) is None
    wrong: list[str] = []
    for key in good:
        for value in VALUES:
            if key == "progress" and callable(value):
                continue  # whatever it raises is its own
            try:
                said = sentence_of(lambda key=key, value=value: function(**{**good, key: value}))  # type: ignore[misc]
            except Exception as error:
                wrong.append(f"{key}={described(value)}: {type(error).__name__}: {error}")
                continue
            if said is not None and ("\n" in said or len(said) > 600 or len(said) < 15):
                wrong.append(f"{key}={described(value)} says {said!r}")
    assert not wrong, "\n".join(wrong)
