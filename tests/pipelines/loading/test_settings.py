"""Settings of components that no model has: one sentence with file and field."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.loading.files import check_directory
from segquant_bench.pipelines.loading.models import load_pipeline
from segquant_bench.pipelines.loading.settings import LARGEST, check_settings
from segquant_bench.pipelines.runtime.paths import ZOO
from tests.pipelines.conftest import Tiny, compose_config

SCHEDULER = "scheduler/scheduler_config.json"
TOO_MUCH = "more than the 67,108,864 that any model has; restore the file, or take another folder"


@pytest.fixture
def model(tiny: Tiny, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.model, tmp_path / "model"))


def _change(model: Path, name: str, **changes: Any) -> None:
    values = json.loads((model / name).read_text())
    (model / name).write_text(json.dumps(values | changes))


def _load(tiny: Tiny, model: Path) -> str:
    config = validate(compose_config([*tiny.overrides(model.parent), f"model.path={model}"])).model
    with pytest.raises(PipelineError) as caught:
        load_pipeline(config, model)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("transformer/config.json", {"attention_head_dim": 10**9}, TOO_MUCH),
        ("transformer/config.json", {"num_layers": -(10**400)}, TOO_MUCH),
        (
            "transformer/config.json",
            {"sample_size": [4, {"deep": 2**63}]},
            f"sample_size[1].deep = {2**63}, {TOO_MUCH}",
        ),
        ("text_encoder/config.json", {"max_position_embeddings": 10**12}, TOO_MUCH),
        (SCHEDULER, {"num_train_timesteps": 10**11}, TOO_MUCH),
        (SCHEDULER, {"num_train_timesteps": 0}, "num_train_timesteps = 0, which must be a number above 0"),
        ("transformer/config.json", {"patch_size": 0}, "patch_size = 0, which must be a number above 0"),
        ("transformer/config.json", {"num_attention_heads": "4"}, 'num_attention_heads = "4", which must be a number'),
        ("vae/config.json", {"scaling_factor": 0}, "scaling_factor = 0, which must be a number above 0"),
        ("vae/config.json", {"scaling_factor": float("nan")}, "scaling_factor = NaN, which must be a number above 0"),
    ],
)
def test_numbers_that_no_model_has(model: Path, name: str, changes: dict[str, Any], words: str) -> None:
    check_directory(model)
    _change(model, name, **changes)
    with pytest.raises(PipelineError) as caught:
        check_directory(model)
    told = str(caught.value)
    assert told.startswith(f"{model / name} has {next(iter(changes))}") and words in told and "\n" not in told
    assert len(told) < 250 + len(str(model))


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000, "null"])
def test_files_without_settings(model: Path, content: str) -> None:
    (model / "vae" / "config.json").write_text(content)
    with pytest.raises(PipelineError, match=r"vae/config\.json (is not readable JSON|holds no settings)"):
        check_directory(model)


def test_what_models_have_is_let_through(tmp_path: Path) -> None:
    deep: Any = LARGEST
    for _ in range(500):
        deep = [deep]
    settings = {
        "_class_name": "Model",
        "rope_theta": 10**9,
        "attention_head_dim": [5, 10],
        "num_attention_heads": None,
        "patch_size": [1, 2, 2],
    }
    (tmp_path / "config.json").write_text(json.dumps(settings | {"deep": deep, "scale": 1e300}))
    check_settings(tmp_path)
    for folder in ZOO.glob("emoji_*"):
        if (folder / "model_index.json").is_file():
            check_directory(folder)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("transformer/config.json", {"patch_size": None}, ", whose patch_size is null: "),
        ("transformer/config.json", {"in_channels": -1}, ", whose in_channels is -1: "),
        ("transformer/config.json", {"num_layers": 10**7}, ", whose num_layers is 10000000: "),
    ],
)
def test_what_loading_fails_of_is_named(
    tiny: Tiny, model: Path, name: str, changes: dict[str, Any], words: str
) -> None:
    _change(model, name, **changes)
    told = _load(tiny, model)
    assert told.startswith(f"diffusers cannot load {model / name}{words}")
    assert told.endswith("; restore the file, or take another folder")


def test_an_empty_tokenizer_is_named(tiny: Tiny, model: Path) -> None:
    (model / "tokenizer" / "tokenizer.json").write_text("{}\n")
    told = _load(tiny, model)
    assert f"cannot be loaded from {model / 'tokenizer'} (" in told and "tokenizer.json is empty; restore" in told


def test_memory_that_a_setting_takes(tiny: Tiny, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of positions is made by numpy, of which no weights tell."""

    def full(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 80. GiB")

    monkeypatch.setattr("diffusers.models.embeddings.get_2d_sincos_pos_embed", full)
    assert " is damaged" not in _load(tiny, model)
    _change(model, "transformer/config.json", pos_embed_max_size=10**6)
    told = _load(tiny, model)
    assert told.startswith("out of memory: ")
    assert told.endswith(f"; or {model / 'transformer/config.json'} is damaged, whose pos_embed_max_size is 1000000")
