"""Files of a model's components that are emptied, or have fields of other types: told before any picture is made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest

from segquant_bench.pipelines.architectures import FOLDER
from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.loading.files import check_directory
from segquant_bench.pipelines.loading.kinds import check_kinds
from segquant_bench.pipelines.loading.models import load_pipeline
from segquant_bench.pipelines.loading.ready import check_schedule
from tests.pipelines.conftest import Tiny, compose_config

SCHEDULER, TOKENIZER = "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"
TOKENS, VOCABULARY = "tokenizer/special_tokens_map.json", "tokenizer/vocab.json"
GONE = object()
OTHERS = (True, -1, 1.5, "x", [], [1], {}, {"a": 1})


@pytest.fixture(scope="module")
def whole(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with the files of published tokenizers beside its own."""
    model = Path(shutil.copytree(tiny.model, tmp_path_factory.mktemp("whole") / "model"))
    (model / TOKENS).write_text(json.dumps({"pad_token": "<|endoftext|>", "bos_token": {"content": "<|startoftext|>"}}))
    vocabulary = json.loads((model / "tokenizer/tokenizer.json").read_text())["model"]["vocab"]
    (model / VOCABULARY).write_text(json.dumps(vocabulary))
    (model / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    (model / "tokenizer/preprocessor_config.json").write_text('{"size": 224}')
    return model


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def _change(file: Path, key: str, value: Any) -> None:
    values = json.loads(file.read_text()) | {key: value}
    if value is GONE:
        del values[key]
    file.write_text(json.dumps(values))


def _sentence(caught: pytest.ExceptionInfo[PipelineError], file: Path) -> str:
    told = str(caught.value)
    assert str(file) in told and "\n" not in told and len(told) < 500 + len(str(file))
    return told


@pytest.mark.parametrize(
    "name",
    [SCHEDULER, TOKENIZER, TOKENS, VOCABULARY, "tokenizer/preprocessor_config.json", "text_encoder/config.json",
     "vae/config.json", "transformer/config.json"],
)  # fmt: skip
@pytest.mark.parametrize("content", ["{}", "[]", "3", ""])
def test_emptied_files(model: Path, name: str, content: str) -> None:
    check_directory(model)
    (model / name).write_text(content)
    with pytest.raises(PipelineError) as caught:
        check_directory(model)
    _sentence(caught, model / name)


def test_emptied_merges(model: Path) -> None:
    (model / "tokenizer/merges.txt").write_text("")
    with pytest.raises(PipelineError, match=r"merges\.txt is empty, so texts would be split otherwise"):
        check_directory(model)


@pytest.mark.parametrize(
    ("name", "key", "values"),
    [
        (TOKENIZER, "model_max_length", (*OTHERS, 0, 1e30)),
        (TOKENIZER, "pad_token", (True, -1, 1.5, [], {}, "")),
        (TOKENS, "bos_token", (True, 1, [], {}, {"content": 3})),
        (VOCABULARY, "a", (*OTHERS, None, 7)),
        ("vae/config.json", "scaling_factor", (None, True, "1", -1.0, 1e999)),
        ("vae/config.json", "norm_num_groups", (0.5, 8.5)),
        ("text_encoder/config.json", "layer_norm_eps", (None, "x", True, -1e-6)),
        ("transformer/config.json", "_class_name", (GONE,)),
    ],
)
def test_fields_of_other_types(model: Path, name: str, key: str, values: tuple[Any, ...]) -> None:
    text = (model / name).read_text()
    for value in values:
        _change(model / name, key, value)
        with pytest.raises(PipelineError) as caught:
            check_directory(model)
        assert key in _sentence(caught, model / name)
        (model / name).write_text(text)


@pytest.mark.parametrize(
    ("name", "key", "value", "words"),
    [
        (SCHEDULER, "shift", True, "shift = true, which must be a number for FlowMatchEulerDiscreteScheduler"),
        (SCHEDULER, "use_dynamic_shifting", "x", 'use_dynamic_shifting = "x", which must be true or false'),
        (SCHEDULER, "shift", 0, "FlowMatchEulerDiscreteScheduler cannot take 20 steps with the settings of"),
        (SCHEDULER, "shift_terminal", 1e308, "its latents are not finite"),
        ("vae/config.json", "shift_factor", GONE, "no number as its shift_factor, which StableDiffusion3Pipeline adds"),
        ("vae/config.json", "scaling_factor", [1], "scaling_factor = [1], which must be a number for AutoencoderKL"),
        (TOKENIZER, "model_max_length", GONE, "has no model_max_length, or 1000"),
        (TOKENIZER, "model_max_length", 17, "or 17, and .* takes texts of 16 tokens"),
        (TOKENIZER, "pad_token", None, "names no pad_token"),
        ("text_encoder/config.json", "eos_token_id", None, "has no eos_token_id, or None, which is not the 81"),
        ("text_encoder/config.json", "eos_token_id", GONE, "has no eos_token_id, or 49407, which is not the 81"),
    ],
)
def test_what_loads_and_fails_or_differs_later(
    tiny: Tiny, tmp_path: Path, name: str, key: str, value: Any, words: str
) -> None:
    model = Path(shutil.copytree(tiny.model, tmp_path / "model"))
    _change(model / name, key, value)
    config = validate(
        compose_config([*tiny.overrides(tmp_path), f"model.path={model}", "model.call.num_inference_steps=20"])
    )
    with pytest.raises(PipelineError, match=words.replace("[1]", r"\[1\]")) as caught:
        check_directory(model)
        load_pipeline(config.model, model)
    _sentence(caught, model / name)


def test_what_is_published_is_let_through() -> None:
    files = [file for file in FOLDER.glob("*.json") if "class" in json.loads(file.read_text())]
    assert len(files) > 12
    for file in files:
        content = json.loads(file.read_text())
        check_kinds(getattr(diffusers, content["class"]), file, content["config"])


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.DDIMScheduler(), diffusers.DDPMScheduler(), diffusers.EulerDiscreteScheduler(),
        diffusers.EulerAncestralDiscreteScheduler(), diffusers.HeunDiscreteScheduler(),
        diffusers.UniPCMultistepScheduler(),
        diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
        diffusers.PNDMScheduler(skip_prk_steps=True), diffusers.LCMScheduler(),
        diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    ],
)  # fmt: skip
def test_schedules_that_can_be_taken(scheduler: Any) -> None:
    before = dict(vars(scheduler))
    for steps in (1, 8):
        check_schedule(scheduler, Path("scheduler_config.json"), steps)
    assert {key: value is before[key] for key, value in vars(scheduler).items()} == dict.fromkeys(before, True)


@pytest.mark.parametrize("value", ["Nope", 3, None])
@pytest.mark.parametrize("file", [SCHEDULER, "transformer/config.json"])
def test_settings_of_a_class_that_is_none(model: Path, file: str, value: Any) -> None:
    _change(model / file, "_class_name", value)
    with pytest.raises(PipelineError, match="_class_name") as caught:
        check_directory(model)
    assert "which diffusers does not have, and the pipeline's index says " in _sentence(caught, model / file)


def test_settings_of_another_scheduler_are_read_as_diffusers_does(model: Path) -> None:
    _change(model / SCHEDULER, "_class_name", "DDIMScheduler")
    check_directory(model)
