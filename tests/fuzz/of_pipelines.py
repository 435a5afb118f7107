"""Readers of the benchmark: data sets, model folders, configurations that are planned, the cache."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from segquant import QuantizationError
from segquant_bench.pipelines.config.sections import CallConfig, ModelConfig
from segquant_bench.pipelines.data import layouts
from segquant_bench.pipelines.data.files import Source, read_archive, read_prompts, read_table
from segquant_bench.pipelines.data.pictures import list_folder, missing, pictures_digest, read_pictures
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.loading.files import check_directory, fingerprint, resolve_directory
from segquant_bench.pipelines.loading.models import load_pipeline
from segquant_bench.pipelines.runtime.cache import find_finished, run_stage
from segquant_bench.pipelines.runtime.unfinished import Unfinished
from tests.fuzz.target import Target
from tests.pipelines.layouts import write_coco, write_dci, write_mjhq, write_sdci
from tests.tiny import tiny_dataset, tiny_sd3_pipeline

REFUSED = (PipelineError,)
ROWS = [
    ("a red cat", "a.png", "evaluation"),
    ('a "dog", sitting', "b.png", "calibration"),
    ("0", "c.png", "evaluation"),
]


def _whole(source: Source) -> None:
    """What a run does with entries before it loads a model."""
    entries = [*source.evaluation, *(source.calibration or ())]
    pictures = [entry.picture for entry in entries if entry.picture is not None]
    there = [picture for picture in pictures if picture not in missing(pictures)]
    pictures_digest(there)
    read_pictures(there, (8, 8), "crop")


def _save_table(name: str) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        for _, file, _ in ROWS:
            Image.new("RGB", (9, 8), "red").save(folder / file)
        if name.endswith(".csv"):
            quoted = ['"{}"'.format(prompt.replace('"', '""')) for prompt, _, _ in ROWS]
            lines = [f"{prompt},{file},{split}" for prompt, (_, file, split) in zip(quoted, ROWS, strict=True)]
            (folder / name).write_text("\n".join(["prompt,file,split", *lines]) + "\n")
        else:
            rows = [dict(zip(("prompt", "file", "split"), row, strict=True)) for row in ROWS]
            (folder / name).write_text("\n".join(map(json.dumps, rows)) + "\n")

    return save


def _read_table(name: str) -> Callable[[Path], None]:
    return lambda folder: _whole(read_table(folder / name, None, pictures=True))


def _save_prompts(folder: Path) -> None:
    (folder / "prompts.txt").write_text("a cat\n\na dog\n")
    (folder / "prompts.yaml").write_text("one: a cat\n2: 'a dog: sitting'\nthree: &a |\n  two\n  lines\n")
    (folder / "prompts.jsonl").write_text('{"caption": "a cat"}\n{"caption": 0, "more": [1]}\n')


def _read_prompts(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        read_prompts(path)


def _save_archive(folder: Path) -> None:
    """Not compressed, so that damage reaches the captions in it."""
    packed = tiny_dataset(folder / "packed.zip", 8)
    with zipfile.ZipFile(packed) as source, zipfile.ZipFile(folder / "shapes.zip", "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    packed.unlink()


def _read_archive(folder: Path) -> None:
    _whole(read_archive(folder / "shapes.zip"))


def _save_layout(folder: Path) -> None:
    for name in ("mjhq", "coco", "sdci", "dci"):
        (folder / name).mkdir()
    write_mjhq(folder / "mjhq", 3)
    write_coco(folder / "coco", "val2017", 10, 3)
    write_sdci(folder / "sdci", 3)
    write_dci(folder / "dci", 3)


def _read_mjhq(folder: Path) -> None:
    _whole(layouts.read_mjhq(folder / "mjhq", True))


def _read_coco(folder: Path) -> None:
    _whole(layouts.read_coco(folder / "coco", "val2017", None, "all", True))


def _read_sdci(folder: Path) -> None:
    _whole(layouts.read_sdci(folder / "sdci", True))


def _read_dci(folder: Path) -> None:
    for caption in ("summary", "extended"):
        _whole(layouts.read_dci(folder / "dci", caption, True))


def _save_pictures(folder: Path) -> None:
    for kind in ("png", "jpg", "webp", "bmp", "gif", "tif"):
        Image.new("RGB", (9, 8), "red").save(folder / f"a.{kind}")


def _read_pictures(folder: Path) -> None:
    read_pictures(list_folder(folder, "dataset.real"), (8, 8), "stretch")


def _config(folder: Path, **more: str) -> ModelConfig:
    call = CallConfig(num_inference_steps=1, guidance_scale=1.0, height=32, width=32)
    return ModelConfig(name="tiny", path=str(folder), device="cpu", call=call, **more)  # type: ignore[arg-type]


def _save_model(folder: Path) -> None:
    tiny_sd3_pipeline(folder)
    _shard(folder / "transformer" / "diffusion_pytorch_model.safetensors")


def _shard(path: Path) -> None:
    """The denoiser's weights in two files with an index."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    names = sorted(tensors)
    halves = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, own in halves.items():
        save_file({name: tensors[name] for name in own}, path.with_name(file), {"format": "pt"})
    found = {name: file for file, own in halves.items() for name in own}
    index = {"metadata": {"total_size": path.stat().st_size}, "weight_map": found}
    path.with_name(f"{path.name}.index.json").write_text(json.dumps(index))
    path.unlink()


def _check_model(folder: Path) -> None:
    check_directory(folder)
    fingerprint(folder)


def _load_model(folder: Path) -> None:
    config = _config(folder)
    load_pipeline(config, resolve_directory(config))


def _save_denoiser(folder: Path) -> None:
    from tests.tiny import tiny_denoiser

    tiny_denoiser().save_config(folder)
    (folder / "model_index.json").unlink(missing_ok=True)


def _plan(folder: Path) -> None:
    from segquant_bench.pipelines.plan.cli import as_json, plan

    json.dumps(as_json(plan([f"model.path={folder}", "precisions=[w8a8]"])), allow_nan=False)


def _save_stage(folder: Path) -> None:
    def compute(place: Path) -> None:
        (place / "numbers.json").write_text("[1, 2]")
        (place / "more").mkdir()
        (place / "more" / "a.bin").write_bytes(struct.pack("<4I", 1, 2, 3, 4))

    run_stage("count", folder, {"a": 1}, compute)


def _find_stage(folder: Path) -> None:
    """A damaged stage is none; one that is found is whole."""
    found = find_finished("count", folder, {"a": 1})
    if found is not None:
        if (found.path / "numbers.json").read_text() != "[1, 2]":
            raise AssertionError("a stage with other content is used")
        _ = found.seconds + found.peak_memory_mb


def _save_clock(folder: Path) -> None:
    (folder / "a.partial").mkdir()
    (folder / "a.partial" / ".began.json").write_text(json.dumps([1.5, 1e9]))


def _take_over(folder: Path) -> None:
    Unfinished(folder / "a", "a", ("kept",))


TARGETS = (
    Target("a table of prompts, CSV", _save_table("a.csv"), _read_table("a.csv"), REFUSED, ("*.csv",)),
    Target("a table of prompts, JSONL", _save_table("a.jsonl"), _read_table("a.jsonl"), REFUSED, ("*.jsonl",)),
    Target("prompts", _save_prompts, _read_prompts, REFUSED),
    Target("an archive of captions", _save_archive, _read_archive, REFUSED),
    Target("MJHQ", _save_layout, _read_mjhq, REFUSED, ("mjhq/*.json",)),
    Target("COCO", _save_layout, _read_coco, REFUSED, ("coco/annotations/*.json",)),
    Target("sDCI", _save_layout, _read_sdci, REFUSED, ("sdci/*.yaml",)),
    Target("DCI", _save_layout, _read_dci, REFUSED, ("dci/complete/*.json",)),
    Target("pictures", _save_pictures, _read_pictures, REFUSED),
    Target(
        "headers and indexes of a model", _save_model, _check_model, REFUSED, ("*.safetensors", "*index*.json"), fast=10
    ),
    Target("a model folder", _save_model, _load_model, REFUSED, ("*.safetensors", "*.json"), fast=12),
    Target("segquant-plan", _save_denoiser, _plan, (PipelineError, QuantizationError), fast=5),
    Target("stage.json", _save_stage, _find_stage, (), ("*.json", "*.bin")),
    Target("the clock of a killed stage", _save_clock, _take_over, (), (".began.json",)),
)
