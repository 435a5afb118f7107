"""Corrections fitted on a pipeline: what a planted error of the denoiser leaves, and the stage that holds them."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from segquant.keep import Keeper
from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.config.sections import CorrectionConfig
from segquant_bench.pipelines.correction.correction import Correction
from segquant_bench.pipelines.correction.fit import exact_prediction, fit_correction
from segquant_bench.pipelines.correction.parts import in_parts
from segquant_bench.pipelines.correction.sampling import corrected
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.sampling.generate import run_batches
from tests.pipelines.conftest import Command, Tiny, compose_config

PROMPTS = ["red circle", "blue square", "green ring"]
CALL = {"num_inference_steps": 4, "guidance_scale": 3.0, "height": 32, "width": 32, "max_sequence_length": 0}
BIAS = (0.02, -0.05, 0.1, 0.0)


@pytest.fixture(scope="module")
def pipeline(tiny: Tiny):
    from segquant_bench.pipelines.loading.models import load_pipeline

    return load_pipeline(validate(compose_config(tiny.overrides(Path("unused")))).model, tiny.model)


class _Planted(torch.nn.Module):
    """A denoiser whose prediction is scaled and shifted per channel."""

    def __init__(self, denoiser: torch.nn.Module, scale: float, bias: tuple[float, ...]) -> None:
        super().__init__()
        self.denoiser, self.config, self.dtype, self.device = denoiser, denoiser.config, denoiser.dtype, denoiser.device
        self.scale, self.bias = scale, torch.tensor(bias).view(-1, 1, 1)

    def forward(self, hidden_states, timestep, encoder_hidden_states, pooled_projections, **rest):
        (output,) = self.denoiser(
            hidden_states=hidden_states, timestep=timestep, encoder_hidden_states=encoder_hidden_states,
            pooled_projections=pooled_projections, **rest,
        )  # fmt: skip
        return (self.scale * output + self.bias,)


def _fit(pipeline, denoiser: torch.nn.Module, method: str, batch_size: int = 2, **values) -> Correction:
    config = CorrectionConfig(name=method, method=method, **values)
    return fit_correction(
        pipeline, "transformer", denoiser, PROMPTS, CALL, config, seed=0, stream=1, batch_size=batch_size
    )


def _latents(pipeline, denoiser: torch.nn.Module, correction: Correction | None = None) -> torch.Tensor:
    original = pipeline.transformer
    pipeline.transformer = denoiser
    try:
        with corrected(pipeline.scheduler, correction):
            batches = run_batches(
                pipeline, denoiser, PROMPTS, CALL, seed=5, stream=0, batch_size=3, output_type="latent", label="test"
            )
            return torch.cat([latents for _, latents in batches])
    finally:
        pipeline.transformer = original


@pytest.mark.parametrize("method", ["ptqd", "affine"])
def test_planted_scale_and_bias_are_recovered_through_guidance(pipeline, method: str) -> None:
    """Both branches carry the error; what the scheduler is given is corrected, on prompts' other latents too."""
    exact, bias = pipeline.transformer, BIAS if method == "ptqd" else (0.05,) * 4
    planted = _Planted(exact, 1.1, bias)
    correction = _fit(pipeline, planted, method, **({"ridge": 0.0} if method == "affine" else {}))
    assert pipeline.transformer is exact and "forward" not in vars(planted)
    assert len(correction.timesteps) == 4
    torch.testing.assert_close(correction.scale, torch.full_like(correction.scale, 1 / 1.1), rtol=1e-3, atol=0)
    wanted = -torch.tensor(bias).view(-1, 1, 1) / 1.1
    shift = correction.shift if method == "ptqd" else correction.shift.mean((2, 3), keepdim=True)
    torch.testing.assert_close(shift, wanted.expand(4, 4, 1, 1) if method == "ptqd" else wanted[:1].expand_as(shift),
                               rtol=1e-3, atol=1e-4)  # fmt: skip
    assert correction.record["guidance_weights"] == pytest.approx([-2.0, 3.0], abs=1e-3)
    assert max(correction.record["prediction_error_corrected"]) < 1e-4 < min(correction.record["prediction_error"])
    reference = _latents(pipeline, exact)
    left = (_latents(pipeline, planted, correction) - reference).norm()
    assert left < 1e-3 * (_latents(pipeline, planted) - reference).norm()


def test_tac_recovers_a_planted_factor_and_the_mean_of_the_latents(pipeline) -> None:
    exact = pipeline.transformer
    factors = _fit(pipeline, _Planted(exact, 1 / 1.1, (0.0,) * 4), "tac")
    torch.testing.assert_close(factors.scale, torch.full((4, 4, 1, 1), 1.1), rtol=1e-4, atol=0)
    assert factors.input_bias is not None and factors.input_bias.abs().max() < 1e-5
    planted = _Planted(exact, 1.0, BIAS)
    biased = _fit(pipeline, planted, "tac", clip=0.0)
    reference = _latents(pipeline, exact).mean((0, 2, 3))
    before = (_latents(pipeline, planted).mean((0, 2, 3)) - reference).abs()
    after = (_latents(pipeline, planted, biased).mean((0, 2, 3)) - reference).abs()
    assert after[2] < 0.1 * before[2] and after.max() < before.max()
    assert _fit(pipeline, planted, "tac", input_bias=False).input_bias is None


def test_every_step_is_fitted_on_the_corrected_trajectory(pipeline) -> None:
    """With all errors corrected the quantized model meets the unquantized one's latents, whatever the parts."""
    planted = _Planted(pipeline.transformer, 1.3, BIAS)
    whole, parted = (_fit(pipeline, planted, "ptqd", batch_size=size) for size in (3, 1))
    torch.testing.assert_close(whole.scale, parted.scale, rtol=1e-4, atol=0)
    torch.testing.assert_close(whole.shift, parted.shift, rtol=1e-3, atol=1e-5)
    assert whole.record["noise"].startswith("the scheduler adds none")
    assert whole.variance is not None and whole.variance.max() < 1e-6


def test_variance_goes_out_of_a_stochastic_sampler(pipeline) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    stochastic = copy.copy(pipeline)
    stochastic.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True)
    correction = _fit(stochastic, _Planted(pipeline.transformer, 1.1, BIAS), "ptqd")
    assert correction.record["noise"] == "variance of the quantization noise taken out at 3 of 4 steps"
    without = _fit(stochastic, _Planted(pipeline.transformer, 1.1, BIAS), "ptqd", variance=False)
    assert without.variance is None and without.record["noise"] == "as the scheduler adds it"


def test_guidance_that_is_no_weighted_sum_is_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    quantized, exact = (torch.randn(4, 3, 8, 8, generator=generator) for _ in range(2))
    guided = quantized[:2] + 5.0 * (quantized[2:] - quantized[:2])
    found, weights = exact_prediction([(quantized, exact)], guided, 2)
    torch.testing.assert_close(found, exact[:2] + 5.0 * (exact[2:] - exact[:2]))
    assert weights == pytest.approx([-4.0, 5.0])
    separate = [(quantized[2:], exact[2:]), (quantized[:2], exact[:2])]
    torch.testing.assert_close(exact_prediction(separate, guided, 2)[0], found)
    rescaled = guided / guided.std((1, 2, 3), keepdim=True) * torch.tensor([1.0, 2.0]).view(-1, 1, 1, 1)
    with pytest.raises(PipelineError, match="weighted sum"):
        exact_prediction([(quantized, exact)], rescaled, 2)
    with pytest.raises(PipelineError, match="weighted sum"):
        exact_prediction([], guided, 2)


def test_parts_of_a_denoiser_give_its_output() -> None:
    """Nested rows are cut, tables are not; diffusers' output objects come back as such."""
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    class Model(torch.nn.Module):
        def forward(self, x, table, conditions, return_dict=True):
            seen.append(len(x))
            return Transformer2DModelOutput(sample=x * conditions["y"] + table.sum())

    seen: list[int] = []
    model, x, table = Model(), torch.randn(6, 3), torch.randn(5, 2)
    wanted = model(x, table, {"y": 2 * x}).sample
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    with in_parts(model, 2, 3, beside=Model(), on_pair=pairs.append):
        output = model(x, table, conditions={"y": 2 * x})
    assert isinstance(output, Transformer2DModelOutput) and torch.equal(output.sample, wanted)
    assert seen == [6, 4, 4, 2, 2]
    assert torch.equal(pairs[0][0], wanted) and torch.equal(pairs[0][1], wanted)


class Kill(BaseException):
    pass


@pytest.mark.parametrize("objects", [False, True], ids=["tuples", "objects"])
def test_a_fit_that_is_killed_asks_no_denoiser_twice(
    pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objects: bool
) -> None:
    """Every denoiser call on every part is kept; the rest of the fit is made again from them."""
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    class Output(_Planted):
        def forward(self, *args, **kwargs):
            calls.append(1)
            (output,) = super().forward(*args, **kwargs)
            return Transformer2DModelOutput(sample=output) if objects else (output,)

    def fit(keep: Keeper | None) -> Correction:
        config = CorrectionConfig(name="tac", method="tac")
        return fit_correction(
            pipeline, "transformer", Output(pipeline.transformer, 1.1, BIAS), PROMPTS, CALL, config,
            seed=0, stream=1, batch_size=2, keep=keep,
        )  # fmt: skip

    calls: list[int] = []
    whole, put, puts = fit(None), Keeper.put, [0]
    expected = len(calls)

    def dying(self: Keeper, *args) -> None:
        put(self, *args)
        puts[0] += 1
        if puts[0] % 3 == 0:
            raise Kill

    monkeypatch.setattr(Keeper, "put", dying)
    calls.clear()
    for _ in range(50):
        try:
            found = fit(Keeper(tmp_path))
            break
        except Kill:
            continue
    assert puts[0] == 16 and len(calls) == expected  # 4 steps, both denoisers' trajectories, 2 parts
    for name in ("scale", "shift", "input_bias"):
        assert torch.equal(getattr(found, name), getattr(whole, name))
    assert found.record == whole.record and found.timesteps == whole.timesteps


def test_no_prompts(pipeline) -> None:
    config = CorrectionConfig(name="tac", method="tac")
    with pytest.raises(PipelineError, match="no calibration prompts"):
        fit_correction(pipeline, "transformer", pipeline.transformer, [], CALL, config, seed=0, stream=1, batch_size=1)


@pytest.mark.parametrize("quantizer", ["ptqd", "tac"])
def test_a_run_corrects_what_it_quantized(command: Command, tiny: Tiny, cache: Path, quantizer: str) -> None:
    outcome = command(*tiny.overrides(cache), f"quantizer={quantizer}", "precision=w4a8_channel")
    assert outcome.code == 0, outcome.err
    results = json.loads((outcome.folder / "results.json").read_text())
    assert (results["quantizer"], results["name"]) == (quantizer, f"{quantizer}_w4a8_channel")
    assert results["correction"]["name"] == quantizer and results["correction"]["prompts"] == 4
    errors = (results["correction"][key] for key in ("prediction_error", "prediction_error_corrected"))
    assert all(after <= before * (1 + 1e-6) for before, after in zip(*errors, strict=True))
    stored = outcome.folder / results["stages"]["correct"]["path"]
    assert {"correction.json", "correction.safetensors"} <= {path.name for path in stored.iterdir()}
    plain = command(*tiny.overrides(cache), "quantizer=rtn", "precision=w4a8_channel")
    assert plain.code == 0, plain.err
    other = json.loads((plain.folder / "results.json").read_text())
    assert other["correction"] is None and "correct" not in other["stages"]
    assert other["stages"]["quantize"]["key"] == results["stages"]["quantize"]["key"]
    assert other["stages"]["generate"]["key"] != results["stages"]["generate"]["key"]
    assert other["config_hash"] != results["config_hash"]


def test_the_unquantized_model_is_not_corrected(command: Command, tiny: Tiny, cache: Path) -> None:
    outcome = command(*tiny.overrides(cache), "quantizer=none", "correction=affine")
    assert outcome.code == 0, outcome.err
    results = json.loads((outcome.folder / "results.json").read_text())
    assert results["correction"] is None and results["stages"].keys() == {"reference", "evaluate"}


def test_more_prompts_than_the_calibration_has(tiny: Tiny) -> None:
    overrides = [*tiny.overrides(Path("unused")), "correction=tac", "correction.prompts=9"]
    with pytest.raises(PipelineError, match="more than the 4 prompts"):
        validate(compose_config(overrides))
