"""Readers beside the main ones: diffusers' plug-in, judges, and what stages keep for one another."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from segquant import QuantizationError, presets, quantize_
from segquant.offload.weights import FileWeights
from segquant_bench.eval import Backends, EvalError
from segquant_bench.eval.metrics.networks.cache import cached_features
from segquant_bench.eval.metrics.networks.clip_source import find_source
from segquant_bench.pipelines.config.sections import LoggerConfig
from segquant_bench.pipelines.correction.correction import Correction, load_correction, save_correction
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.loading.embeddings import Embeddings
from segquant_bench.pipelines.loggers.for_wandb.marks import Mark
from segquant_bench.pipelines.sampling.samples import Batches, Sample, load_samples, save_samples
from segquant_bench.pipelines.stages.estimate import _alike
from tests.fuzz.target import Target
from tests.pipelines.loggers.support import about
from tests.tiny import tiny_sd3_pipeline

CONFIG, OURS = "config.json", "quantization.json"
"""What diffusers reads, and the part of it that is ours, so that each damage hits it."""


def _save_pretrained(folder: Path) -> None:
    import segquant.deploy.diffusers  # noqa: F401 - teaches diffusers to write quantized models
    from tests.segquant.deploy.tiny import small

    quantize_(small(), presets.rtn("w8a8_dynamic"), []).save_pretrained(folder)
    config = json.loads((folder / CONFIG).read_text())
    (folder / OURS).write_text(json.dumps(config.pop("quantization_config")))
    (folder / CONFIG).write_text(json.dumps({**config, "quantization_config": "@ours@"}))
    _with_ours(folder)


def _with_ours(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text())
    text = json.dumps({**config, "quantization_config": "@ours@"}).encode()
    (folder / CONFIG).write_bytes(text.replace(b'"@ours@"', (folder / OURS).read_bytes()))


def _from_pretrained(folder: Path) -> None:
    """diffusers' own refusals: no JSON, an unknown method, weights that are no safetensors or of another model."""
    import diffusers

    import segquant.deploy.diffusers  # noqa: F401

    try:
        diffusers.SD3Transformer2DModel.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, AttributeError) as error:
        if not any(words in str(error) for words in DIFFUSERS):
            raise
        raise QuantizationError("refused by diffusers") from error


DIFFUSERS = (
    "Unknown quantization type", "The model's quantization config", "Unable to load weights",
    "is not a valid JSON file", "has no attribute 'quant_method'",
)  # fmt: skip
"""What it says; the last, of a list in the place of the whole section."""


def _save_judge(folder: Path) -> None:
    import open_clip
    from safetensors.torch import save_file

    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 512, "width": 16, "heads": 2, "layers": 1},
    }
    model = open_clip.CLIP(**config)
    settings = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")


def _find_judge(folder: Path) -> None:
    """As the judge of a label, then as that of an architecture and of a file beside the configuration."""
    find_source(Backends(clip="a judge", clip_path=folder))
    for name, path in (("ViT-B-32", folder), ("ViT-B-32", folder / "open_clip_model.safetensors")):
        with contextlib.suppress(EvalError):
            find_source(Backends(clip=name, clip_path=path))


def _load_judge(folder: Path) -> None:
    from segquant_bench.eval.metrics.networks.clip import load_scorer

    load_scorer(Backends(clip="a judge", clip_path=folder))


def _save_features(folder: Path) -> None:
    Image.new("RGB", (4, 4), "red").save(folder.parent / "a.png")
    _features(folder)


def _features(folder: Path) -> None:
    """Damaged ones are computed again."""
    found = cached_features("key", [folder.parent / "a.png"], folder, lambda batch: np.ones((len(batch), 3)), 1)
    if not np.array_equal(found, np.ones((1, 3))):
        raise AssertionError("other features are used")


class _Pipeline:
    _execution_device = torch.device("cpu")

    def encode_prompt(self, prompt: Any) -> Any:
        return torch.full((1, 2), 1.0), None, torch.ones(3)

    def prepare_latents(self) -> None:
        return None

    def __call__(self, prompt: Any, **_: Any) -> None:
        self.encode_prompt(prompt)
        self.prepare_latents()


def _save_embeddings(folder: Path) -> None:
    from segquant_bench.pipelines.loading.embeddings import encode_prompts

    encode_prompts(_Pipeline(), ["a cat", "a dog"], {}, folder)


def _embeddings(folder: Path) -> None:
    pipeline: Any = _Pipeline()
    Embeddings(folder).use(pipeline)
    rows, nothing, shared = pipeline.encode_prompt(["a cat", "a dog"])
    if not isinstance(rows, torch.Tensor) or rows.shape[0] != 2:
        raise AssertionError(f"{rows}, {nothing} and {shared} are no embeddings of two prompts")


def _save_correction(folder: Path) -> None:
    correction = Correction("affine", (7, 3), scale=torch.ones(2, 4, 2, 2), shift=torch.zeros(2, 4, 2, 2), record={})
    save_correction(correction, folder)


def _save_inputs(folder: Path) -> None:
    samples = [
        Sample(prompt, 0, {"x": torch.zeros(1, 2)}, {"t": torch.ones(1)}, {"return_dict": False}, 0)
        for prompt in range(3)
    ]
    save_samples(samples, folder / "held_out")


def _inputs(folder: Path) -> None:
    list(Batches(load_samples(folder / "held_out"), 2))


def _save_weights(folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a.weight": torch.zeros(2, 3), "a.bias": torch.ones(2)}, folder / "model.safetensors")


def _weights(folder: Path) -> None:
    found = FileWeights([folder / "model.safetensors"])(["a.weight", "a.bias"])
    if {name: tuple(tensor.shape) for name, tensor in found.items()} == {}:
        raise AssertionError("nothing is read")


def _plan(folder: Path) -> None:
    from segquant_bench.pipelines.plan.cli import plan

    plan([f"model.path={folder}", "precisions=[w8a8]"])


def _save_stages(folder: Path) -> None:
    record = {"name": "quantize", "seconds": 2.0, "depends": _depends()}
    (folder / "quantize-0").mkdir()
    (folder / "quantize-0" / "stage.json").write_text(json.dumps(record))


def _depends() -> dict[str, Any]:
    call = {"num_inference_steps": 2, "height": 32, "width": 32}
    sampling = {"model": "m", "dtype": "float32", "device": "cpu", "call": call}
    return {"needs": {"graph": "key"}, "depends": {"prompts": {"calibration": ["a", "b"]}, "sampling": sampling}}


def _estimate(folder: Path) -> None:
    took = _alike("quantize", _depends(), folder)
    if took is not None and not isinstance(took, int | float):
        raise AssertionError(f"{took} seconds")


def _save_marks(folder: Path) -> None:
    Mark(about(folder, cache=folder), LoggerConfig("wandb")).put("https://host/run")


def _mark(folder: Path) -> None:
    Mark(about(folder, cache=folder), LoggerConfig("wandb")).place()


def _study(folder: Path) -> None:
    from segquant_bench.pipelines.config.search import import_optuna
    from segquant_bench.pipelines.sweeps.study import Study

    space = {"quantizer.alpha": import_optuna().distributions.FloatDistribution(0.0, 1.0)}
    study = Study(folder, {"output_error": "minimize"}, space)
    number, values = study.ask()
    study.tell(number, [values["quantizer.alpha"]], 0.1, "0_rtn")


def _save_study(folder: Path) -> None:
    for _ in range(3):
        _study(folder)


SEARCHES = (
    (Target("study.log", _save_study, _study, (PipelineError,), ("study.log",), fast=10),)
    if importlib.util.find_spec("optuna") is not None
    else ()
)
TARGETS = (
    Target("quantization_config, by diffusers", _save_pretrained, _from_pretrained, (QuantizationError,), (OURS,),
           _with_ours, fast=12),
    Target("quantized weights, by diffusers", _save_pretrained, _from_pretrained, (QuantizationError,),
           ("*.safetensors",), fast=8),
    Target("open_clip_config.json", _save_judge, _find_judge, (EvalError,), ("*.json",)),
    Target("a judge's folder", _save_judge, _load_judge, (EvalError,), fast=10),
    Target("features of pictures", _save_features, _features, (), ("*.safetensors",)),
    Target("embeddings", _save_embeddings, _embeddings, (PipelineError,)),
    Target("a correction", _save_correction, load_correction, (PipelineError,)),
    Target("calibration inputs", _save_inputs, _inputs, (PipelineError,)),
    Target("weights of blocks on disk", _save_weights, _weights, (QuantizationError,)),
    Target("a model folder, by segquant-plan", tiny_sd3_pipeline, _plan, (PipelineError, QuantizationError),
           ("model_index.json", "*/*config.json"), fast=2),
    Target("times of other stages", _save_stages, _estimate, ()),
    Target("what W&B was told before", _save_marks, _mark, ()),
    *SEARCHES,
)  # fmt: skip
