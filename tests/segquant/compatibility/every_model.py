"""Every denoiser class quantized, run, saved, loaded by a new process and run again; the table of what is refused.

python -m tests.segquant.compatibility.every_model               # all, writes docs/compatibility.md; two hours
python -m tests.segquant.compatibility.every_model NAME …        # these alone, prints
"""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
import tempfile
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
MODULE = "tests.segquant.compatibility.every_model"
PAGE = ROOT / "docs" / "compatibility.md"
HEAD = """# Every denoiser class

Every denoiser class that diffusers exports, small and with random weights, was quantized, run, saved, loaded by a new
process and run again, in float32 and in bfloat16. ✓: both give finite outputs of the float model's shape and dtype, and
the loaded model gives the same bits as the saved one. A number is a refusal; the reasons stand below the table. Written
by `python -m tests.segquant.compatibility.every_model`.

- Linear layers are quantized, those left alone by the calls are not (`on_uncalled="skip"`).
- w4a8 has groups of 32 inputs; layers of these small models that 32 does not divide have a scale per channel.
- segquant_g searches no alpha (`alpha=0.5`).
- Models made of several ControlNets, and Z-Image's ControlNet, have no configuration that says how to build them:
  `load_quantized(directory, model)` fills a float model.
"""
GROUP = 32
"""Input channels of a group of w4a8; layers of these tiny models that it does not divide get a scale per channel."""
# Arguments that stay in float32 beside a bfloat16 model, but for classes that do not cast them.
TIMES = ("timestep", "timesteps", "sigma", "t", "r_timestep")
CAST_TIMES = (
    "AceStepTransformer1DModel", "HunyuanDiT2DControlNetModel", "HunyuanDiT2DModel", "HunyuanDiT2DMultiControlNetModel",
    "HunyuanImageTransformer2DModel", "HunyuanVideo15Transformer3DModel", "Ideogram4Transformer2DModel",
    "Kandinsky5Transformer3DModel", "MiniMaxMusic3Transformer1DModel",
)  # fmt: skip


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
    kept = () if name in CAST_TIMES else TIMES
    calls = (first, TABLE[name]()[1], TABLE[name]()[1])
    return _cast_model(_filled(model), dtype), [
        {key: value if key in kept else _cast(value, dtype) for key, value in inputs.items()} for inputs in calls
    ]


def _filled(model: nn.Module) -> nn.Module:
    """Some classes (mixtures of experts) leave weights as they find the memory, for a file to fill."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if not bool((parameter.detach().abs() < 1e3).all()):
            parameter.data.normal_(0, 0.05, generator=generator)
    return model


def _cast_model(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """As from_pretrained(torch_dtype=…): some parts stay in float32."""
    precise = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not precise & set(name.split(".")):
            tensor.data = tensor.data.to(dtype)
    return model


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
    assert exact and all(bool(t.isfinite().all()) for t in (*exact, *found)), case
    torch.save({"inputs": inputs, "outputs": found}, folder / case.folder / "expected.pt")
    return ""


def segments_for(name: str) -> dict[str, Segments]:
    model, inputs = built(name)
    return find_segments(model, (), inputs)


def load_and_run(case: Case, folder: Path) -> None:
    """Assert that the loaded model gives the same bits."""
    torch.manual_seed(1)  # what a model draws when it is built is overwritten
    model = built(case.name)[0] if _is_made_of_models(case.name) else None
    loaded = load_quantized(folder / case.folder, model)
    expected = torch.load(folder / case.folder / "expected.pt", weights_only=False)
    found = run(loaded, expected["inputs"])
    assert len(found) == len(expected["outputs"]), case
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, expected["outputs"], strict=True)), case


def _is_made_of_models(name: str) -> bool:
    """No configuration says how to build these: load_quantized fills a model."""
    return "Multi" in name or name == "ZImageControlNetModel"


def in_new_process(wanted: Iterable[Case], folder: Path) -> None:
    """`load_and_run` for all."""
    command = [sys.executable, "-m", MODULE, "--load", str(folder), *(case.folder for case in wanted)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def check(wanted: Iterable[Case], folder: Path, *, new_process: bool = True) -> dict[Case, str]:
    """What is refused, and why; all else must come out of its file bit for bit."""
    refused: dict[Case, str] = {}
    saved: list[Case] = []
    for name, own in itertools.groupby(wanted, lambda case: case.name):
        segments = segments_for(name)
        for case in own:
            reason = quantize_and_save(case, folder, segments)
            if reason:
                refused[case] = reason
            else:
                saved.append(case)
    if new_process:
        in_new_process(saved, folder)
    else:
        for case in saved:
            load_and_run(case, folder)
    return refused


def table(refused: Mapping[Case, str]) -> str:
    """A row a class, a column a method and precision; a cell has a tick, or the number of the reason."""
    reasons = list(dict.fromkeys(refused.values()))
    columns = list(itertools.product(METHODS, PRECISIONS))
    lines = [HEAD, f"| class | {' | '.join(map(' '.join, columns))} |", "|---" * (len(columns) + 1) + "|"]
    for name in NAMES:
        cells = []
        for column in columns:
            found = {dtype: refused.get(Case(name, *column, dtype)) for dtype in DTYPES}
            told = [f"[{reasons.index(why) + 1}] ({dtype})" for dtype, why in found.items() if why is not None]
            cells.append(", ".join(told) or "✓")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", *(f"{number}. {why}" for number, why in enumerate(reasons, 1))] if reasons else []
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """The table, or with `--load FOLDER CASE …` the other process of `in_new_process`."""
    if arguments[:1] == ["--load"]:
        for folder in arguments[2:]:
            load_and_run(Case(*folder.split("-")), Path(arguments[1]))
        return
    refused: dict[Case, str] = {}
    for name in arguments or NAMES:
        with tempfile.TemporaryDirectory() as folder:
            found = check(cases([name]), Path(folder))
        print(name, {case.folder: why for case, why in found.items()} or "all", flush=True)
        refused |= found
    if not arguments:
        PAGE.write_text(table(refused), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
