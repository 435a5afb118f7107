"""Bad input and bad environments: one sentence on stderr, a non-zero exit, nothing half-written."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import segquant_bench.pipelines.loading.assemble
import segquant_bench.pipelines.loading.files
import segquant_bench.pipelines.sampling.generate
from segquant_bench.pipelines.config.explain import memory_message
from segquant_bench.pipelines.config.sections import PartConfig
from segquant_bench.pipelines.errors import PipelineError
from tests.pipelines.conftest import Command, Outcome, Tiny

ROOT = Path(__file__).resolve().parents[2]


def _assert_refused(outcome: Outcome, *words: str) -> None:
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    assert outcome.sentence.startswith("segquant: ")
    for word in words:
        assert word in outcome.sentence
    assert not (outcome.folder / "results.json").exists()


def _assert_nothing_half_written(cache: Path) -> None:
    for path in (cache / "stage").glob("*"):
        assert path.suffix == ".lock" or (path / "stage.json").is_file(), path


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("quantizer=rnt", ("quantizer=rnt", "did you mean 'rtn'")),
        ("precision=w8a7", ("precision=w8a7", "'w8a8'")),
        ("hydra/launcher=jobli", ("'joblib'",)),
        ("quantizer.seglinar=false", ("quantizer.seglinar", "did you mean 'seglinear'")),
        ("model.pth=x", ("model.pth", "'path'")),
        ("model.call.hight=64", ("model.call.hight", "'height'")),
        ("quantizr=rtn", ("'quantizr'", "'quantizer'")),
        ("+sead=1", ("'sead'", "'seed'")),
        ("+quantizer.dualscail=true", ("dualscail", "nearest: dualscale")),
        ("seed=abc", ("seed", "Integer")),
        ("seed=[1", ("seed=[1",)),
        ("model.batch_size=0", ("model.batch_size=0", "from 1 to 65536")),
        ("model.dtype=float12", ("model.dtype", "'float32'")),
        ("quantizer.alpha=1.5", ("alpha", "1.5")),
        ("quantizer._target_=os.system", ("os.system takes no", "known are command")),
        ("metric.metrics=[]", ("metric.metrics is empty",)),
        ("metric.metrics=[psnrr]", ("psnrr", "psnr")),
        ("model.path=null", ("model.path=DIRECTORY",)),
    ],
)
def test_misspelled_and_out_of_range(
    command: Command, tiny: Tiny, tmp_path: Path, override: str, words: tuple[str, ...]
) -> None:
    _assert_refused(command(*tiny.overrides(tmp_path / "cache"), override), *words)
    assert not (tmp_path / "cache" / "stage").exists()


def test_precision_that_a_quantizer_cannot_do(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    outcome = command(*tiny.overrides(tmp_path / "cache"), "quantizer=smoothquant", "precision=w4a16")
    _assert_refused(outcome, "smoothquant", "w4a16")
    outcome = command(*tiny.overrides(tmp_path / "cache"), "quantizer=rtn", "quantizer.precision=w8a9")
    _assert_refused(outcome, "w8a9", "w8a8")
    outcome = command(*tiny.overrides(tmp_path / "cache"), "quantizer=rtn", "quantizer.precision=w4a8")
    _assert_refused(outcome, "quantizer.precision=w4a8", "under which its results would stand; set precision=w4a8")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("calibration.prompts=0", ("calibration.prompts=0", "from 1 to 1000000")),
        ("calibration.prompts=7", ("9 calibration prompts", "has 8", "lower calibration.prompts")),
        ("calibration.steps_per_prompt=5", ("calibration.steps_per_prompt=5", "4 steps")),
        ("dataset.size=9", ("9 evaluation prompts", "has 8", "lower dataset.size")),
        ("dataset.size=0", ("dataset.size=0",)),
        ("metric.bootstrap=0", ("metric.bootstrap=0 is out of range", "from 1 to 1000000")),
        ("metric.bootstrap=999999999999", ("metric.bootstrap=999999999999 is out of range",)),
        ("model.call.num_inference_steps=1000000000", ("num_inference_steps=1000000000 is out of range",)),
    ],
)
def test_too_few_or_too_many(command: Command, tiny: Tiny, cache: Path, override: str, words: tuple[str, ...]) -> None:
    """Before any stage computes."""
    outcome = command(*tiny.overrides(cache), override)
    _assert_refused(outcome, *words)
    assert "computing" not in outcome.err
    _assert_nothing_half_written(cache)


def _prompt_files(folder: Path, evaluation: str, calibration: str) -> list[str]:
    (folder / "evaluation.txt").write_text(evaluation)
    (folder / "calibration.txt").write_text(calibration)
    return [
        "dataset.archive=null",
        "dataset.size=null",
        f"dataset.evaluation_prompts={folder}/evaluation.txt",
        f"dataset.calibration_prompts={folder}/calibration.txt",
    ]


def test_prompt_files_empty_missing_overlapping(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    base = tiny.overrides(tmp_path / "cache")
    many = "\n".join("abcdef")
    _assert_refused(command(*base, *_prompt_files(tmp_path, " \n\n", many)), "evaluation.txt is empty")
    _assert_refused(command(*base, *_prompt_files(tmp_path, "x", "")), "calibration.txt is empty")
    _assert_refused(
        command(*base, *_prompt_files(tmp_path, "x\nc", many)),
        "both for calibration and for evaluation",
        "'c'",
    )
    files = _prompt_files(tmp_path, "x", many)
    (tmp_path / "evaluation.txt").unlink()
    _assert_refused(command(*base, *files), "evaluation.txt is not there; give the path")
    _assert_refused(command(*base, *_prompt_files(tmp_path, "x", many), f"dataset.real={tmp_path}"), "no folder of PNG")


def test_broken_archive(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    broken = tmp_path / "broken.zip"
    broken.write_bytes(tiny.archive.read_bytes()[:500])
    base = tiny.overrides(tmp_path / "cache")
    _assert_refused(command(*base, f"dataset.archive={broken}"), "broken.zip cannot be read")
    with zipfile.ZipFile(broken, "w") as archive:
        archive.writestr("captions.jsonl", json.dumps({"file": "a.png", "caption": "a", "split": "evaluation"}))
    _assert_refused(command(*base, f"dataset.archive={broken}"), "lacks the picture a.png")


@pytest.fixture
def model(tiny: Tiny, tmp_path: Path) -> Path:
    """A copy of the tiny pipeline to break."""
    shutil.copytree(tiny.model, tmp_path / "model")
    return tmp_path / "model"


def test_model_directory_that_is_none(command: Command, tiny: Tiny, tmp_path: Path, model: Path) -> None:
    base = tiny.overrides(tmp_path / "cache")
    _assert_refused(command(*base, f"model.path={tmp_path}/nowhere"), "nowhere does not exist", "model_index.json")
    _assert_refused(command(*base, f"model.path={model}/vae"), "is no diffusers pipeline", "model_index.json")
    (model / "model_index.json").write_text("{")
    _assert_refused(command(*base, f"model.path={model}"), "not readable JSON")
    (model / "model_index.json").write_text("{}")
    _assert_refused(command(*base, f"model.path={model}"), "_class_name")
    assert not (tmp_path / "cache" / "stage").exists()


@pytest.mark.parametrize("component", ["transformer", "text_encoder_2", "vae"])
def test_missing_and_truncated_safetensors(
    command: Command, tiny: Tiny, tmp_path: Path, model: Path, component: str
) -> None:
    base = [*tiny.overrides(tmp_path / "cache"), f"model.path={model}"]
    (file,) = (model / component).glob("*.safetensors")
    whole = file.read_bytes()
    for length, words in (
        (len(whole) - 1, ("is truncated", f"{len(whole) - 1} of {len(whole)}")),
        (100, ("header",)),
    ):
        file.write_bytes(whole[:length])
        _assert_refused(command(*base), str(file), *words)
    file.unlink()
    _assert_refused(command(*base), f"{model / component} has no safetensors")
    shutil.rmtree(model / component)
    _assert_refused(command(*base), f"lacks its component '{component}'")
    assert not (tmp_path / "cache" / "stage").exists()


def test_weights_that_do_not_fit_their_configuration(command: Command, tiny: Tiny, tmp_path: Path, model: Path) -> None:
    config = json.loads((model / "transformer" / "config.json").read_text())
    (model / "transformer" / "config.json").write_text(json.dumps({**config, "num_layers": 3}))
    outcome = command(*tiny.overrides(tmp_path / "cache"), f"model.path={model}")
    assert outcome.code == 1 and "Traceback" not in outcome.err
    _assert_nothing_half_written(tmp_path / "cache")


def test_truncated_quantized_denoiser_in_the_cache(command: Command, tiny: Tiny, cache: Path) -> None:
    base = [*tiny.overrides(cache), "quantizer=rtn"]
    assert command(*base).code == 0
    (file,) = (cache / "stage").glob("quantize-*/denoiser/*.safetensors")
    (generated,) = (path for path in (cache / "stage").glob("generate-*") if path.is_dir())
    shutil.rmtree(generated)
    file.write_bytes(file.read_bytes()[:-10])
    size = file.stat().st_size
    outcome = command(*base, "name=again")
    assert outcome.code == 0, outcome.err
    assert file.stat().st_size == size + 10
    (aside,) = (cache / "stage").glob("quantize-*.damaged1")
    assert (aside / "denoiser" / file.name).stat().st_size == size


def test_nan_in_the_denoiser_output_names_the_step(command: Command, tiny: Tiny, tmp_path: Path, model: Path) -> None:
    (file,) = (model / "transformer").glob("*.safetensors")
    tensors = load_file(file)
    tensors["proj_out.bias"][0] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    outcome = command(*tiny.overrides(tmp_path / "cache"), f"model.path={model}")
    _assert_refused(outcome, "NaN or infinite at step 1 of 4")
    _assert_nothing_half_written(tmp_path / "cache")


def test_unknown_denoiser_and_device(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    base = tiny.overrides(tmp_path / "cache")
    _assert_refused(command(*base, "model.denoiser=unet"), "no denoiser 'unet'", "transformer")
    _assert_refused(command(*base, "model.device=cuda:77"), "model.device='cuda:77'", "model.device=cpu")


def test_unknown_denoiser_is_refused_before_text_is_encoded(
    command: Command, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(*_: object) -> None:
        raise AssertionError("text was encoded")

    monkeypatch.setattr(segquant_bench.pipelines.loading.assemble, "encode_prompts", encode)
    base = [*tiny.overrides(tmp_path / "cache"), "model.embeddings=cached"]
    _assert_refused(command(*base, "model.denoiser=unet"), "no denoiser 'unet'", "model.denoiser", "transformer")


def test_weights_that_are_pickles(command: Command, tiny: Tiny, tmp_path: Path, model: Path) -> None:
    (file,) = (model / "transformer").glob("*.safetensors")
    file.rename(file.with_suffix(".bin"))
    outcome = command(*tiny.overrides(tmp_path / "cache"), f"model.path={model}")
    _assert_refused(
        outcome, "has no safetensors", "only diffusion_pytorch_model.bin", "never loaded", "convert them", "revision"
    )


def test_weights_of_a_small_pipeline_that_was_not_trained(
    command: Command, tiny: Tiny, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segquant_bench.pipelines.loading.files, "ZOO", tmp_path)
    base = tiny.overrides(tmp_path / "cache")
    train = "`python -m segquant_bench.pipelines.zoo.train --family flux` makes it"
    _assert_refused(command(*base, f"model.path={tmp_path}/emoji_flux"), "emoji_flux does not exist", train)
    model.rename(tmp_path / "emoji_flux")
    shutil.rmtree(tmp_path / "emoji_flux" / "vae")
    _assert_refused(command(*base, f"model.path={tmp_path}/emoji_flux"), "lacks its component 'vae'", train)
    part = PartConfig(kind="SD3ControlNetModel", path=f"{tmp_path}/emoji_sd3_canny/controlnet")
    with pytest.raises(PipelineError, match="no config.json; .* --family canny` makes it"):
        segquant_bench.pipelines.loading.files.resolve_part("controlnet", part)


def _cuda_out_of_memory() -> None:
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 39.50 GiB of which 1.20 GiB is "
        "free. Of the allocated memory 37.00 GiB is allocated by PyTorch"
    )


def _plain_memory_error() -> None:
    raise MemoryError


@pytest.mark.parametrize(
    ("allocate", "words"),
    [
        (_cuda_out_of_memory, "20.00 GiB were asked for and 1.20 GiB are free"),
        (lambda: torch.empty(2**50, dtype=torch.uint8), "1125899.9 GB were asked for"),
        (lambda: np.empty(2**50, dtype=np.uint8), "1.00 PiB were asked for"),
        (_plain_memory_error, "more was asked for than is free"),
    ],
)
def test_memory_that_runs_out(allocate: Callable[[], object], words: str) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        allocate()
    sentence = memory_message(raised.value)
    assert sentence is not None and "\n" not in sentence
    for word in (words, "out of memory", "model.offload=components", "model.offload=blocks", "model.batch_size"):
        assert word in sentence
    assert memory_message(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


def test_memory_that_runs_out_while_sampling(
    command: Command, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        segquant_bench.pipelines.sampling.generate, "run_batches", lambda *_, **__: iter(_cuda_out_of_memory, None)
    )
    _assert_refused(command(*tiny.overrides(tmp_path / "cache")), "20.00 GiB were asked for", "model.batch_size")
    _assert_nothing_half_written(tmp_path / "cache")


def test_memory_that_runs_out_while_loading(
    command: Command, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", lambda *_, **__: _cuda_out_of_memory())
    _assert_refused(command(*tiny.overrides(tmp_path / "cache")), "20.00 GiB were asked for", "model.batch_size")


def test_no_network(command: Command, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    overrides = [item for item in tiny.overrides(tmp_path / "cache") if not item.startswith("model")]
    outcome = command("model=sd35_medium", *overrides)
    assert "model.path=DIRECTORY" in outcome.err
    _assert_refused(outcome, "stabilityai/stable-diffusion-3.5-medium", "hf download", "model.path=DIRECTORY")
    assert not (tmp_path / "cache" / "stage").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 64 KB; skipped where mounting is not permitted."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting a tmpfs is not permitted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def _grow(place: Path, kilobytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(place)], check=True)


@pytest.mark.parametrize("stage", ["reference", "quantize"])
def test_full_disk(command: Command, tiny: Tiny, finished_cache: Path, small_disk: Path, stage: str) -> None:
    cache = small_disk / "cache"
    if stage == "reference":
        (small_disk / "filler").write_bytes(bytes(56 * 1024))
    else:
        _grow(small_disk, 100_000)
        shutil.copytree(finished_cache, cache)
        used = shutil.disk_usage(small_disk).used // 1024
        _grow(small_disk, used + 64)
    outcome = command(*tiny.overrides(cache), "quantizer=rtn")
    _assert_refused(outcome, "the disk is full", f"stage {stage}", "cache=DIRECTORY")
    _assert_nothing_half_written(cache)
    _grow(small_disk, 100_000)
    assert command(*tiny.overrides(cache), "quantizer=rtn").code == 0
