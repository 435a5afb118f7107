"""Work that a run does once: the graph, held-out inputs, and the signs of activations only where they are wanted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from segquant_bench.eval import load_result
from segquant_bench.eval.paper.polarity import polarity_sheets
from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.stages.benchmark import open_run, run_all
from segquant_bench.pipelines.stages.run import Run
from tests.pipelines.conftest import Command, Tiny, compose_config


def _run(tiny: Tiny, cache: Path, *overrides: str) -> Run:
    return open_run(validate(compose_config([*tiny.overrides(cache), *overrides])))


def test_the_graph_is_captured_once_a_run_and_shared_by_methods(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segquant.graph import find

    captured: list[str] = []
    capture = find.capture
    monkeypatch.setattr(
        find, "capture", lambda model, *rest: captured.append(type(model).__name__) or capture(model, *rest)
    )
    first = _run(tiny, tmp_path, "quantizer=segquant_a", "quantize=[denoiser,text_encoder]")
    run_all(first)
    assert Counter(captured) == {"SD3Transformer2DModel": 1, "CLIPTextModelWithProjection": 1}
    second = _run(tiny, tmp_path, "quantizer=segquant_g", "quantizer.alpha=0.5", "quantize=[denoiser,text_encoder]")
    run_all(second)
    assert len(captured) == 2 and second.stage("quantize").key != first.stage("quantize").key
    manifest = json.loads((second.folder("quantize") / "denoiser" / "quantized.json").read_text())
    assert manifest["segments"]["transformer_blocks.0.norm1.linear"]["output"] == [64] * 6


def test_methods_without_cuts_store_no_segments(tiny: Tiny, cache: Path) -> None:
    run = _run(tiny, cache, "quantizer=rtn")
    manifest = json.loads((run.folder("quantize") / "denoiser" / "quantized.json").read_text())
    assert manifest["segments"] == {}


def test_held_out_inputs_go_through_each_model_once(tiny: Tiny, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from segquant_bench.pipelines.stages import quantize

    run, calls = _run(tiny, cache, "quantizer=rtn", "calibration.batch_size=2"), Counter()
    measure = quantize.denoiser_errors

    def counted(denoiser: torch.nn.Module, quantized: torch.nn.Module, *rest):
        for name, model in (("float", denoiser), ("quantized", quantized)):
            model.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
        return measure(denoiser, quantized, *rest)

    monkeypatch.setattr(quantize, "denoiser_errors", counted)
    found = json.loads((run.folder("quantize") / "errors.json").read_text())
    assert calls == {"float": 2, "quantized": 2}  # two prompts, two steps each, two at once
    assert len(found["per_row_output_errors"]) == len(found["per_row_steps"]) == 4
    squares = [error**2 for error in found["per_row_output_errors"]]
    assert min(squares) <= found["output_error"] ** 2 <= max(squares)


def test_signs_of_activations_are_a_stage_of_their_own(command: Command, tiny: Tiny, cache: Path) -> None:
    base = [*tiny.overrides(cache), "quantizer=rtn", "report=false"]
    without = command(*base)
    assert without.code == 0, without.err
    raw = json.loads((without.folder / "results.json").read_text())
    assert "polarity" not in raw["stages"] and raw["statistics"]["polarity"] == {}
    assert polarity_sheets([load_result(without.folder / "results.json")]) == []
    wanted = command(*base, "polarity=true")
    assert wanted.code == 0, wanted.err
    run = load_result(wanted.folder / "results.json")
    assert [name for name, stage in run.stages.items() if not stage["cached"]] == ["polarity"]
    assert run.config_hash == raw["config_hash"]
    (sheet,) = polarity_sheets([run])
    assert {entry[1].text for entry in sheet.rows} == {"silu", "gelu"}


def test_table1_has_the_signs() -> None:
    assert validate(compose_config(["experiment=table1"])).polarity
    assert not validate(compose_config([])).polarity
