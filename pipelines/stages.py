"""reference → calibrate → quantize → correct → generate → evaluate: what each stage depends on, and what it does."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipelines import measure
from pipelines.cache import Stage, write_json
from pipelines.calibrate_stage import STREAMS
from pipelines.encoder_stage import EncoderStage
from pipelines.method import check_metrics
from pipelines.picture_stage import PictureStage

if TYPE_CHECKING:
    import torch

    from segquant import Method

GENERATE_MODULES = ("generate", "models")
CORRECT_MODULES = ("correction", "correction_sampling", "correction_fit", "sections", "samples", "shared_inputs")


class Benchmark(EncoderStage, PictureStage):
    """One run: stages are computed when first asked for, and only then is the pipeline loaded, once."""

    _peer_denoiser: torch.nn.Module | None = None

    def reference(self) -> Stage:
        """images/: the unquantized model's pictures; denoiser.json: its size."""
        depends = {
            **self._sampling(),
            "prompts": list(self.dataset.evaluation),
            **self.control_depends("evaluation"),
            "code": measure.modules_digest(*GENERATE_MODULES),
        }
        return self._stage("reference", depends, self._reference)

    def _reference(self, folder: Path) -> None:
        from segquant import model_weight_bytes

        self._generate(self.pipeline, self.denoiser, folder / "images", "reference")
        write_json(folder / "denoiser.json", {"weight_bytes": model_weight_bytes(self.denoiser)})

    def _generate(self, pipeline: Any, denoiser: torch.nn.Module, folder: Path, label: str) -> None:
        from pipelines.generate import generate_images

        model = self.config.model
        generate_images(
            pipeline, denoiser, self.dataset.evaluation, folder, model.call.arguments(),
            seed=self.config.seed, batch_size=model.batch_size, label=label, inputs=self.prompt_inputs("evaluation"),
        )  # fmt: skip

    def quantize(self) -> Stage:
        """denoiser/: the quantized denoiser (peer.json: what another tool made); plan.json of `auto`; errors.json."""
        depends = {
            "calibrate": self.calibrate().key,
            "method": self.method.to_dict(),
            "batch_size": self.config.calibration.batch_size,
            "code": self._quantizer_code(),
        }
        return self._stage("quantize", depends, self._quantize)

    def _quantizer_code(self) -> list[str]:
        """Digests of the code that quantizes and measures."""
        own = [measure.source_digest("segquant"), measure.modules_digest("quantized", "samples")]
        return [*own, measure.source_digest("pipelines.peers")] if self.config.is_peer else own

    def _quantize(self, folder: Path) -> None:
        from pipelines.quantized import denoiser_errors, save_denoiser
        from pipelines.samples import load_samples

        quantized = self._make_quantized()
        save_denoiser(quantized, self.method, folder)
        held_out = load_samples(self.calibrate().path / "held_out")
        size = self.config.calibration.batch_size
        errors = denoiser_errors(self.denoiser, quantized, self.method, held_out, size, self.device)
        write_json(folder / "errors.json", errors)
        if self.config.is_peer:
            self._peer_denoiser = quantized

    def _make_quantized(self) -> torch.nn.Module:
        from pipelines.quantized import quantize_copy
        from pipelines.samples import Batches, load_samples

        samples = load_samples(self.calibrate().path / "calibration")
        batches = Batches(samples, self.config.calibration.batch_size, self.device)
        if self.config.model.offload == "blocks":
            from pipelines.offload import quantize_from_disk

            model, method = self.config.model, cast("Method", self.method)  # other tools are refused with offloading
            return quantize_from_disk(model, self.directory, method, batches, self.config.name).to(self.device)
        return quantize_copy(self.denoiser, self.method, batches, self.config.name)

    def quantized_denoiser(self) -> torch.nn.Module:
        """The quantized denoiser, read from its stage, where the pipeline is; the float one if it is left as it is.

        What another tool made is kept in memory, and made again from the same calibration by another process.
        """
        if not self.config.quantizes_denoiser:
            return self.denoiser
        import segquant
        from pipelines.quantized import check_same

        folder = self.quantize().path
        if self.config.model.offload == "blocks":
            from pipelines.offload import load_lean

            return load_lean(self.config.model, self.directory, folder / "denoiser").to(self.device)
        if not self.config.is_peer:
            return segquant.load_quantized(folder / "denoiser").to(self.device).eval()
        if self._peer_denoiser is None:
            self._peer_denoiser = check_same(self._make_quantized(), folder)
        return self._peer_denoiser

    def correct(self) -> Stage:
        """correction.safetensors and .json: what the quantized denoiser's predictions are corrected by.

        It is fitted with the text encoders that sampling will have: both denoisers are given the same embeddings.
        """
        depends = {
            **self._sampling(),
            "quantize": self.quantize().key,
            "correction": asdict(self.config.correction),
            "calibration": list(self.dataset.calibration),
            "calibration_seed": self.config.calibration.seed,
            **self.control_depends("calibration"),
            "code": measure.modules_digest(*GENERATE_MODULES, *CORRECT_MODULES),
        }
        if self.config.other_components:
            depends["encoders"] = self.encoders().key
        return self._stage("correct", depends, self._correct)

    def _correct(self, folder: Path) -> None:
        from pipelines.correction import save_correction
        from pipelines.correction_fit import fit_correction
        from pipelines.encoders import in_place

        model, config = self.config.model, self.config.correction
        with in_place(self.pipeline, self.quantized_encoders()):
            correction = fit_correction(
                self.pipeline, self.denoiser_name, self.quantized_denoiser(),
                self.dataset.calibration[: config.prompts], model.call.arguments(), config,
                seed=self.config.calibration.seed, stream=STREAMS["calibration"], batch_size=model.batch_size,
                inputs=self.prompt_inputs("calibration"),
            )  # fmt: skip
        save_correction(correction, folder)

    def generate(self) -> Stage:
        """images/: the quantized model's pictures; the unquantized model's are those of `reference`."""
        if self.config.is_float:
            return self.reference()
        depends = {
            **self._sampling(),
            "prompts": list(self.dataset.evaluation),
            **self.control_depends("evaluation"),
            "code": measure.modules_digest(*GENERATE_MODULES),
        }
        if self.config.quantizes_denoiser:
            depends["quantize"] = self.quantize().key
        if self.config.is_corrected:
            depends["correct"] = self.correct().key
        if self.config.other_components:
            depends["encoders"] = self.encoders().key
        return self._stage("generate", depends, self._generate_quantized)

    def _generate_quantized(self, folder: Path) -> None:
        from pipelines.correction import load_correction
        from pipelines.correction_sampling import corrected
        from pipelines.encoders import in_place

        correction = load_correction(self.correct().path) if self.config.is_corrected else None
        quantized = self.quantized_denoiser()
        parts = {self.denoiser_name: quantized, **self.quantized_encoders()}
        with in_place(self.pipeline, parts), corrected(self.pipeline.scheduler, correction):
            self._generate(self.pipeline, quantized, folder / "images", self.config.name)

    def evaluate(self) -> Stage:
        """What `eval.evaluate` writes, and metrics.json among it."""
        metric = self.config.metric
        depends = {
            "generate": self.generate().key,
            "reference": self.reference().key,
            "real": self.real().key if self.judges_real else None,
            "metric": {**asdict(metric), "backends": self._backends()},
            "device": self.device.partition(":")[0],
            "code": measure.source_digest("eval"),
        }
        return self._stage("evaluate", depends, self._evaluate)

    def _backends(self) -> dict[str, Any]:
        """The networks that judge, by content where they are files."""
        backends = asdict(self.config.metric.backends)
        for key in ("inception", "clip_path"):
            if backends[key] is not None:
                backends[key] = _content(Path(backends[key]))
        return backends

    def _evaluate(self, folder: Path) -> None:
        from eval import Backends, evaluate

        metric, reference = self.config.metric, self.reference().path
        evaluate(
            self.generate().path / "images",
            self.dataset.evaluation,
            reference=reference / "images",
            real=self.real().path / "images" if self.judges_real else None,
            metrics=metric.metrics,
            backends=Backends(**asdict(metric.backends), device=self.device),
            output=folder / "evaluation",
            seed=metric.seed,
            bootstrap=metric.bootstrap,
            cache=self.cache / "features",
        )

    def run(self) -> None:
        """All stages, in order; what can be refused without work is refused first."""
        self.method  # noqa: B018 - built for its checks
        self.encoder_methods  # noqa: B018
        check_metrics(self.config.metric, self.dataset)
        self.reference()
        if self.judges_real:
            self.real()
        if self.config.quantizes_denoiser:
            self.calibrate()
            self.statistics()
            self.quantize()
        if self.config.other_components:
            self.encoders()
        if self.config.is_corrected:
            self.correct()
        self.generate()
        self.evaluate()


def _content(path: Path) -> str:
    if path.is_dir():
        return measure.tree_digest(path, (".json", ".safetensors", ".txt", ".bpe", ".gz"))
    return measure.file_digest(path) if path.is_file() else str(path)
