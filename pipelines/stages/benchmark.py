"""reference → calibrate → quantize → correct → generate → evaluate: what each stage depends on, and what it does."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from segquant_bench.pipelines.runtime import digests
from segquant_bench.pipelines.runtime.cache import Stage, write_json
from segquant_bench.pipelines.stages.calibrate import STREAMS
from segquant_bench.pipelines.stages.components import EncoderStage
from segquant_bench.pipelines.stages.judgement import check_metrics
from segquant_bench.pipelines.stages.pictures import PictureStage

if TYPE_CHECKING:
    import torch

    from segquant import Method, Outcome

GENERATE_MODULES = ("sampling.generate", "loading.models")
CORRECT_MODULES = (
    "correction.correction",
    "correction.sampling",
    "correction.fit",
    "config.sections",
    "sampling.samples",
    "sampling.shared_inputs",
)


class Benchmark(EncoderStage, PictureStage):
    """One run: stages are computed when first asked for, and only then is the pipeline loaded, once."""

    _peer_denoiser: torch.nn.Module | None = None

    def reference(self) -> Stage:
        """images/: the unquantized model's pictures; denoiser.json: its size."""
        depends = {
            **self._sampling(),
            "prompts": list(self.dataset.evaluation),
            **self.control_depends("evaluation"),
            "code": digests.modules_digest(*GENERATE_MODULES),
        }
        return self._stage("reference", depends, self._reference)

    def _reference(self, folder: Path) -> None:
        from segquant import model_weight_bytes

        self._generate(self.pipeline, self.denoiser, folder / "images", "reference")
        write_json(folder / "denoiser.json", {"weight_bytes": model_weight_bytes(self.denoiser)})

    def _generate(self, pipeline: Any, denoiser: torch.nn.Module, folder: Path, label: str) -> None:
        from segquant_bench.pipelines.sampling.generate import generate_images

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
        own = [digests.source_digest("segquant"), digests.modules_digest("stages.quantized", "sampling.samples")]
        return [*own, digests.source_digest("segquant_bench.pipelines.peers")] if self.config.is_peer else own

    def _quantize(self, folder: Path) -> None:
        from segquant_bench.pipelines.sampling.samples import load_samples
        from segquant_bench.pipelines.stages.quantized import denoiser_errors, save_denoiser

        quantized, outcome = self._make_quantized()
        save_denoiser(quantized, outcome, self.method, folder)
        held_out = load_samples(self.calibrate().path / "held_out")
        size = self.config.calibration.batch_size
        errors = denoiser_errors(self.denoiser, quantized, self.method, held_out, size, self.device)
        write_json(folder / "errors.json", errors)
        if self.config.is_peer:
            self._peer_denoiser = quantized

    def _make_quantized(self) -> tuple[torch.nn.Module, Outcome | None]:
        from segquant_bench.pipelines.sampling.samples import Batches, load_samples
        from segquant_bench.pipelines.stages.quantized import quantize_copy

        samples = load_samples(self.calibrate().path / "calibration")
        batches = Batches(samples, self.config.calibration.batch_size, self.device)
        if self.config.model.offload == "blocks":
            from segquant_bench.pipelines.loading.blocks import quantize_from_disk

            model, method = self.config.model, cast("Method", self.method)  # other tools are refused with offloading
            quantized, outcome = quantize_from_disk(model, self.directory, method, batches, self.config.name)
            return quantized.to(self.device), outcome
        return quantize_copy(self.denoiser, self.method, batches, self.config.name)

    def quantized_denoiser(self) -> torch.nn.Module:
        """The quantized denoiser, read from its stage, where the pipeline is; the float one if it is left as it is.

        What another tool made is kept in memory, and made again from the same calibration by another process.
        """
        if not self.config.quantizes_denoiser:
            return self.denoiser
        import segquant
        from segquant_bench.pipelines.stages.quantized import check_same

        folder = self.quantize().path
        if self.config.model.offload == "blocks":
            from segquant_bench.pipelines.loading.blocks import load_offloaded

            return load_offloaded(self.config.model, self.directory, folder / "denoiser").to(self.device)
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
            "code": digests.modules_digest(*GENERATE_MODULES, *CORRECT_MODULES),
        }
        if self.config.other_components:
            depends["encoders"] = self.encoders().key
        return self._stage("correct", depends, self._correct)

    def _correct(self, folder: Path) -> None:
        from segquant_bench.pipelines.correction.correction import save_correction
        from segquant_bench.pipelines.correction.fit import fit_correction
        from segquant_bench.pipelines.stages.encoders import in_place

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
            "code": digests.modules_digest(*GENERATE_MODULES),
        }
        if self.config.quantizes_denoiser:
            depends["quantize"] = self.quantize().key
        if self.config.is_corrected:
            depends["correct"] = self.correct().key
        if self.config.other_components:
            depends["encoders"] = self.encoders().key
        return self._stage("generate", depends, self._generate_quantized)

    def _generate_quantized(self, folder: Path) -> None:
        from segquant_bench.pipelines.correction.correction import load_correction
        from segquant_bench.pipelines.correction.sampling import corrected
        from segquant_bench.pipelines.stages.encoders import in_place

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
            "code": digests.source_digest("segquant_bench.eval"),
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
        from segquant_bench.eval import Backends, evaluate

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
        return digests.tree_digest(path, (".json", ".safetensors", ".txt", ".bpe", ".gz"))
    return digests.file_digest(path) if path.is_file() else str(path)
