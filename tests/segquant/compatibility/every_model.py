"""Every denoiser class quantized, run, saved, loaded by a new process and run again; the table of what is refused.

python -m tests.segquant.compatibility.every_model               # all, writes docs/compatibility.md; two hours
python -m tests.segquant.compatibility.every_model NAME …        # these alone, prints
"""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segquant import (
    Method,
    QuantizationError,
    Segments,
    find_segments,
    load_quantized,
    presets,
    quantize_,
    save_quantized,
)
from segquant.modules.layers import quantizable, width_of
from segquant.modules.tensors import tensors_of
from tests.segquant.graph.every_denoiser import NOT_CAPTURED, TABLE, built

ROOT = Path(__file__).parents[3]
METHODS: dict[str, Callable[..., Method]] = {"rtn": presets.rtn, "segquant_g": presets.segquant_g}
PRECISIONS = ("w8a8_dynamic", "w8a8_tensor", "w4a8")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NAMES = sorted(set(TABLE) - set(NOT_CAPTURED))
GROUP = 32
"""Input channels of a group of w4a8; layers of these tiny models that it does not divide get a scale per channel."""
# Made of other models, so that no configuration says how to build them: load_quantized fills a model.
NO_CONFIG = ("MultiControlNetModel", "ZImageControlNetModel")
# A float forward that does not run in bfloat16: nothing to quantize.
FLOAT_FAILS: dict[str, str] = {}
# Arguments that stay in float32, as the class's pipeline gives them.
TIMES = ("timestep", "timesteps", "sigma", "t", "r_timestep")


@dataclass(frozen=True)
class Case:
    """One cell of the table."""

    name: str
    method: str
    precision: str
    dtype: str

    @property
    def folder(self) -> str:
        return "-".join(dataclasses.astuple(self))


def cases(names: Iterable[str]) -> list[Case]:
    return [Case(*parts) for parts in itertools.product(names, METHODS, PRECISIONS, DTYPES)]


def model_and_calls(name: str, dtype: torch.dtype) -> tuple[nn.Module, list[dict[str, Any]]]:
    """The float model, and inputs for it: two calls to calibrate with and one to run."""
    model, first = built(name)
    return model.to(dtype), [cast_inputs(inputs, dtype) for inputs in (first, TABLE[name]()[1], TABLE[name]()[1])]


def cast_inputs(inputs: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {name: value if name in TIMES else _cast(value, dtype) for name, value in inputs.items()}


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, (list, tuple)):
        return type(value)(_cast(entry, dtype) for entry in value)
    return {key: _cast(entry, dtype) for key, entry in value.items()} if isinstance(value, dict) else value


def run(model: nn.Module, inputs: Mapping[str, Any]) -> list[Tensor]:
    torch.manual_seed(0)  # some forwards draw
    with torch.no_grad():
        return tensors_of(model(**inputs))


def method_for(model: nn.Module, case: Case, convolutions: bool = False) -> Method:
    layers = quantizable(model, convolutions)
    unfit = [name for name, layer in layers.items() if width_of(layer) % GROUP and case.precision == "w4a8"]
    alpha = {"alpha": 0.5} if case.method == "segquant_g" else {}  # not searched, which would take long
    return METHODS[case.method](
        case.precision,
        on_uncalled="skip",
        overrides={name: {"precision": "w4a8_channel"} for name in unfit},
        convolutions=convolutions,
        **alpha,
    )


def quantize_and_save(case: Case, folder: Path, segments: Mapping[str, Segments]) -> str:
    """What was refused, or "". The folder gets the model and what it gave."""
    model, (*calibration, inputs) = model_and_calls(case.name, DTYPES[case.dtype])
    exact = run(model, inputs)
    try:
        quantize_(model, method_for(model, case), calibration, segments)
        found = run(model, inputs)
        save_quantized(model, folder / case.folder)
    except QuantizationError as error:
        return str(error)
    assert [(t.dtype, t.shape) for t in found] == [(t.dtype, t.shape) for t in exact], case
    assert all(bool(t.isfinite().all()) for t in found if bool(torch.isfinite(t).any())), case
    torch.save({"inputs": inputs, "outputs": found}, folder / case.folder / "expected.pt")
    return ""


def segments_for(name: str) -> dict[str, Segments]:
    model, inputs = built(name)
    return find_segments(model, (), inputs)


def load_and_run(case: Case, folder: Path) -> None:
    """Assert that the loaded model gives the same bits."""
    torch.manual_seed(1)  # what a model draws when it is built is overwritten
    model = model_and_calls(case.name, torch.float32)[0] if case.name in NO_CONFIG else None
    loaded = load_quantized(folder / case.folder, model)
    expected = torch.load(folder / case.folder / "expected.pt", weights_only=False)
    found = run(loaded, expected["inputs"])
    assert len(found) == len(expected["outputs"]), case
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, expected["outputs"], strict=True)), case


def in_new_process(wanted: Iterable[Case], folder: Path) -> None:
    """`load_and_run` for all."""
    command = [sys.executable, "-m", __name__, "--load", str(folder), *(case.folder for case in wanted)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def check(names: Iterable[str], folder: Path, wanted: Callable[[Case], bool] = lambda _: True) -> dict[Case, str]:
    """What is refused, by case; the others must come out of a new process bit for bit."""
    refused: dict[Case, str] = {}
    saved: list[Case] = []
    for name in names:
        segments = segments_for(name)
        for case in filter(wanted, cases([name])):
            reason = quantize_and_save(case, folder, segments)
            if reason:
                refused[case] = reason
            else:
                saved.append(case)
    in_new_process(saved, folder)
    return refused
