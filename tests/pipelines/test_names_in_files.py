"""Only the command line and the configuration name code: names in files of models, plans and results import nothing."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from segquant import QuantizationError, load_quantized, presets, quantize_, save_quantized
from segquant_bench.eval import EvalResult, load_result
from segquant_bench.eval.report.main_table.results_table import results_table
from segquant_bench.eval.tables.render_markdown import to_markdown
from segquant_bench.pipelines.config.quantizer import build_quantizer
from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.config.sections import ModelConfig
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.loading.models import load_denoiser, load_pipeline
from tests.eval.sweep import run_record
from tests.pipelines.conftest import Command, Tiny, compose_config

TRAP = "trap_in_a_file"


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package that can be imported, and tells when it is."""
    (tmp_path / "path" / TRAP).mkdir(parents=True)
    marker = tmp_path / "imported"
    for name in ("__init__", "part"):
        text = f"open({str(marker)!r}, 'w').close()\nclass Kind: ...\ndef call(*_, **__): ...\n"
        (tmp_path / "path" / TRAP / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "path")
    monkeypatch.chdir(tmp_path / "path")
    yield TRAP
    assert not marker.exists() and TRAP not in sys.modules


def _changed(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.fixture
def model(tiny: Tiny, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.model, tmp_path / "model"))


def _config(tiny: Tiny, model: Path, *overrides: str) -> ModelConfig:
    run = [*tiny.overrides(model.parent / "cache"), f"model.path={model}", *overrides]
    return validate(compose_config(run)).model


@pytest.mark.parametrize("component", ["transformer", "text_encoder", "scheduler", "tokenizer", "vae"])
def test_a_component_of_another_library(tiny: Tiny, model: Path, trap: str, component: str) -> None:
    _changed(model / "model_index.json", **{component: [trap, "Kind"]})
    with pytest.raises(PipelineError, match=f"takes its {component} from '{trap}'.*never imported"):
        load_pipeline(_config(tiny, model), model)


def test_a_file_beside_a_component(tiny: Tiny, model: Path, trap: str) -> None:
    shutil.copy(Path(trap) / "part.py", model / "vae" / "part.py")
    _changed(model / "model_index.json", vae=["part", "Kind"])
    with pytest.raises(PipelineError, match="takes its vae from 'part'.*never imported"):
        load_pipeline(_config(tiny, model), model)


@pytest.mark.parametrize("name", [[TRAP, "Kind"], f"{TRAP}.Kind", f"{TRAP}.part.Kind"])
def test_a_pipeline_class(tiny: Tiny, model: Path, trap: str, name: object) -> None:
    shutil.copy(Path(trap) / "part.py", model / f"{trap}.py")
    _changed(model / "model_index.json", _class_name=name)
    with pytest.raises(PipelineError, match="never run|diffusers cannot load"):
        load_pipeline(_config(tiny, model), model)


@pytest.mark.parametrize(("component", "kind"), [("text_encoder", "AutoModel"), ("tokenizer", "AutoTokenizer")])
def test_auto_map(tiny: Tiny, model: Path, trap: str, component: str, kind: str) -> None:
    _changed(model / "model_index.json", **{component: ["transformers", kind]})
    shutil.copy(Path(trap) / "part.py", model / component / "part.py")
    file = model / component / ("config.json" if component == "text_encoder" else "tokenizer_config.json")
    _changed(file, auto_map={kind: "part.Kind"})
    with pytest.raises(PipelineError, match="names code of its own.*never run"):
        load_pipeline(_config(tiny, model), model)


def test_auto_map_beside_a_class_that_does_not_read_it(tiny: Tiny, model: Path, trap: str) -> None:
    shutil.copy(Path(trap) / "part.py", model / "text_encoder" / "part.py")
    _changed(model / "text_encoder" / "config.json", auto_map={"AutoModel": "part.Kind"})
    assert type(load_pipeline(_config(tiny, model), model).text_encoder).__name__ == "CLIPTextModelWithProjection"


def test_the_class_in_a_component_s_config(tiny: Tiny, model: Path, trap: str) -> None:
    for name in (f"{trap}.Kind", "Kind"):
        _changed(model / "transformer" / "config.json", _class_name=name)
        load_pipeline(_config(tiny, model), model)  # the index says which class it is
        _changed(model / "model_index.json", transformer=["diffusers", name])
        with pytest.raises(PipelineError, match="is no class of diffusers"):
            load_denoiser(_config(tiny, model), model)
        shutil.copy(tiny.model / "model_index.json", model / "model_index.json")


def test_a_plan_for_a_denoiser(model: Path, trap: str, capsys: pytest.CaptureFixture[str],
                               monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    from segquant_bench.pipelines.plan.cli import main

    _changed(model / "transformer" / "config.json", _class_name=f"{trap}.Kind")
    monkeypatch.setattr(sys, "argv", ["segquant-plan", f"model.path={model}"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1 and f"no class '{trap}.Kind'" in capsys.readouterr().err


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    quantized = quantize_(nn.Sequential(nn.Linear(8, 8)), presets.rtn("w8a8_dynamic"), [(torch.ones(2, 8),)])
    return save_quantized(quantized, tmp_path / "saved")


@pytest.mark.parametrize("module", [TRAP, f"{TRAP}.part", f"torch.nn.{TRAP}", f"diffusers.{TRAP}"])
def test_the_class_of_a_saved_model(saved: Path, trap: str, module: str) -> None:
    _changed(saved / "quantized.json", **{"class": {"module": module, "name": "Kind"}, "config": {}})
    with pytest.raises(QuantizationError, match="cannot be rebuilt|no module|no model"):
        load_quantized(saved)


def test_a_results_file(trap: str, tmp_path: Path) -> None:
    raw = run_record("mine", "w8a8", 1.0, ["a", "b"], [])
    raw["config"] = {"quantizer": {"_target_": f"{trap}.call"}, "metric": {"metrics": [f"{trap}.Kind"]}}
    raw["metrics"] = [EvalResult(f"{trap}.Kind", 1.0, 2, "lower", None, trap, None).to_dict()]
    (tmp_path / "results.json").write_text(json.dumps(raw))
    run = load_result(tmp_path / "results.json")
    text = to_markdown(results_table([run]))
    assert "mine" in text and f"{trap}.Kind" in text


def test_a_data_file(tiny: Tiny, tmp_path: Path, trap: str, command: Command) -> None:
    rows = [{"prompt": f"p {n}", "_target_": f"{trap}.call", "picture": f"{trap}.call"} for n in range(12)]
    (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = ["dataset=folder", f"dataset.table={tmp_path}/table.jsonl", "dataset.size=2", "dataset.pictures=false"]
    run = [item for item in tiny.overrides(tmp_path / "cache") if not item.startswith("dataset")]
    assert command(*run, *data, "quantizer=none").code == 0


def test_a_plan_file(tmp_path: Path, trap: str) -> None:
    from segquant.method.plan_file import LayerPlan, write_plan

    path = tmp_path / "plan.json"
    write_plan(path, presets.auto("w8a8_tensor"), [LayerPlan("a.b", {"rotate": True})])
    for name in ("calibrator", "optimizer", "ranges"):
        raw = json.loads(path.read_text())
        for layer in raw["layers"]:
            layer["choice"] = {name: f"{trap}.Kind"}
        (tmp_path / "other.json").write_text(json.dumps(raw))
        with pytest.raises(PipelineError, match=f"{trap}.Kind"):
            build_quantizer({"_target_": "segquant.presets.plan", "path": str(tmp_path / "other.json")})
