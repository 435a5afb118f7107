"""Rotation, ranges, smoothing rules and bias correction in a quantized linear, against definitions written anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from segquant import (
    PRECISIONS,
    InputStats,
    Method,
    Outcome,
    QuantizationError,
    QuantLinear,
    Segments,
    load_quantized,
    presets,
    read_outcome,
    save_quantized,
)
from segquant.optimizers.protocol import Problem
from segquant.optimizers.search import _choices
from segquant.optimizers.smooth import ALPHAS, Choice
from segquant.solve.lay_out import lay_out_layer
from segquant.transforms.rotation import Rotation
from tests.segquant.support import (
    BLOCK_SEGMENTS,
    EACH_KIND,
    EIGHT,
    OUTCOMES,
    SUPER_BLOCKS,
    Block,
    block_batches,
    brute_force,
    rotation,
    tensor,
    told,
)

WIDTH, OUT = 192, 48
CUT = Segments(output=(16, 32), activation="silu")
STATIC = [name for name, scheme in PRECISIONS.items() if scheme.static_input]


def inputs(rows: int, seed: int) -> Tensor:
    x = nn.functional.silu(tensor(rows, WIDTH, seed=seed) * torch.linspace(0.1, 4, WIDTH))
    x[:, 7] *= 10
    return x


def layer(bias: bool = True) -> tuple[nn.Linear, InputStats]:
    linear = nn.Linear(WIDTH, OUT, bias=bias)
    with torch.no_grad():
        linear.weight.copy_(tensor(OUT, WIDTH, seed=1) * torch.linspace(0.2, 3, OUT)[:, None])
        if bias:
            linear.bias.copy_(tensor(OUT, seed=2))
    stats = InputStats("layer", WIDTH, keep_gram=True)
    for index in range(8):
        stats.update(inputs(12, index), index % 4)
    stats.salience = stats.mean_abs * 2 + torch.linspace(0, 1, WIDTH)
    return linear, stats


def turn_of(module: QuantLinear) -> tuple[int, ...]:
    """Sizes of the blocks of a rotated layer."""
    turn = module.layout.transform("rotation")
    assert isinstance(turn, Rotation)
    return turn.blocks(module.layout.columns)


def make(precision: str, segments: Segments | None = CUT, bias: bool = True, **fields: object) -> QuantLinear:
    linear, stats = layer(bias)
    return QuantLinear.from_float(linear, Method.of("m", PRECISIONS[precision], **fields), stats, segments)  # type: ignore


ROTATED = {
    "alone": {}, "smooth": {"optimizer": "smooth", "alpha": 0.5, "seglinear": True},
    "svd": {"optimizer": "svd", "alpha": 0.5, "rank": 4, "seglinear": True},
    "gptq": {"calibrator": "gptq", "ranges": "mse", "bias_correction": True},
}  # fmt: skip


@pytest.mark.parametrize("kind", ROTATED)
@pytest.mark.parametrize("precision", [*EIGHT, *(name for name in EACH_KIND if name not in SUPER_BLOCKS)])
def test_rotated_forward_equals_brute_force(precision: str, kind: str) -> None:
    module, x = make(precision, rotate=True, **ROTATED[kind]), inputs(9, 99)
    exact = brute_force(module, x)
    assert turn_of(module) == (64, 64, 64)
    assert (module(x) - exact).norm() <= (6e-3 if precision == "fp8" else 2e-3) * exact.norm()
    narrow = min(spec.bits for spec in (module.layout.scheme.weight, module.layout.scheme.input) if spec is not None)
    bound = {3: 0.4, 4: 0.25, 5: 0.12, 6: 0.1, 8: 0.06}[narrow]
    assert (module(x) - layer()[0](x)).norm() <= bound * layer()[0](x).norm()


@pytest.mark.parametrize("width", [192, 48, 24, 7])
def test_rotation_is_exact_before_rounding(width: int) -> None:
    """Where rounding is fine (codes without inputs, weights on the grid), the weight times the input is the output."""
    linear, x = nn.Linear(width, 20), tensor(11, width, seed=3)
    stats = InputStats("layer", width)
    stats.update(x, None)
    method = Method.of("m", replace(PRECISIONS["w8a8"], input=None), rotate=True, optimizer="smooth", alpha=0.4)
    module = QuantLinear.from_float(linear, method, stats, None)
    torch.testing.assert_close(x @ module.weight.T + module.bias, module(x), rtol=1e-4, atol=1e-5)
    # the stored weight is that of the rotated, smoothed space, and orthogonal rotation undoes itself
    matrix = rotation(turn_of(module), module.rotation_signs)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(width, dtype=torch.float64))
    stored = module.codes.double() * module.weight_scale.double()
    undone = stored @ matrix.T / module.smooth[0].double()
    torch.testing.assert_close(undone.float(), module.weight, rtol=1e-4, atol=1e-6)
    assert (module.weight - linear.weight).norm() < 0.01 * linear.weight.norm()


def test_rotation_leaves_no_sign_and_no_input_pieces() -> None:
    fed = Segments(output=(16, 32), input=(64, 128), input_activations=("silu", "gelu"), activation=None)
    plain = make("w8a8", fed, seglinear=True, dualscale=True).layout
    turned = make("w8a8", fed, seglinear=True, dualscale=True, rotate=True).layout
    assert plain.dual == (True, True) and plain.columns == (64, 128)
    assert turned.dual == (False,) and turned.columns == (WIDTH,) and turned.rows == (16, 32)
    with pytest.raises(ValueError, match="no sign of its own left"):
        replace(turned, dual=(True,))


@pytest.mark.parametrize("precision", STATIC)
def test_static_scales_of_rotated_inputs_cover_the_sample(precision: str) -> None:
    _, stats = layer()
    module = make(precision, rotate=True, optimizer="smooth", alpha=0.5, seglinear=True)
    spec = PRECISIONS[precision].input
    top = 448 if precision == "fp8" else 255 if spec.zero_point else 127
    for branch in range(len(module.layout.branches)):
        smoothed = stats.sample.double() / module.smooth[branch].double()
        turned = smoothed @ rotation(turn_of(module), module.rotation_signs)
        seen = float(turned.amax() - turned.amin()) if spec.zero_point else float(turned.abs().amax())
        factor = float(module.input_scale[branch, 0]) * top / seen
        assert factor == pytest.approx(1, rel=1e-5)


def test_rotation_spreads_an_outlier_channel() -> None:
    linear, stats = layer()[0], InputStats("layer", WIDTH)
    outlier = torch.ones(WIDTH).index_fill(0, torch.tensor([7]), 40.0)
    for index in range(8):
        stats.update(tensor(12, WIDTH, seed=index) * outlier, index % 4)
    with torch.no_grad():
        linear.weight[:, 7] /= 40
    x = tensor(100, WIDTH, seed=98) * outlier
    for precision in ("w8a8_tensor", "w8a8_dynamic"):
        plain, turned = (
            (QuantLinear.from_float(linear, presets.rtn(precision, rotate=turn), stats)(x) - linear(x)).norm()
            for turn in (False, True)
        )
        assert turned < 0.5 * plain


MODELS = {
    "rotate": {"rotate": True}, "rotate_svd": {"rotate": True, "optimizer": "svd", "rank": 2, "alpha": 0.5},
    "bias": {"bias_correction": True, "calibrator": "gptq"}, "mse": {"ranges": "mse", "seglinear": True},
    "percentile": {"ranges": "percentile", "seglinear": True, "dualscale": True},
    "mse_dual": {"ranges": "mse", "seglinear": True, "dualscale": True, "optimizer": "awq"},
    "balance": {"optimizer": "balance", "rotate": True, "bias_correction": True},
    "mixed": {"overrides": (("up", {"rotate": True}), ("out", {"bias_correction": True, "ranges": "mse"}))},
}  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("precision", ["w8a8_tensor", "w4a8"])
def test_save_and_load_are_bit_exact(precision: str, kind: str, tmp_path: Path) -> None:
    method = Method.of("m", PRECISIONS[precision], **MODELS[kind])  # type: ignore[arg-type]
    model = told(Block(), method, block_batches(6, seed=1), BLOCK_SEGMENTS)
    save_quantized(model, tmp_path / "model", OUTCOMES[model])
    loaded, batch = load_quantized(tmp_path / "model", Block()), block_batches(1, seed=2)[0]
    assert torch.equal(loaded(**batch), model(**batch))
    assert read_outcome(tmp_path / "model") == Outcome(method, OUTCOMES[model].segments, OUTCOMES[model].passes)
    for name in BLOCK_SEGMENTS:
        assert getattr(loaded, name).layout == getattr(model, name).layout


@pytest.mark.parametrize("bias", [True, False])
def test_bias_correction_removes_the_mean_error(bias: bool) -> None:
    linear, stats = layer(bias)
    plain, corrected = (make("w4a8_channel", bias=bias, bias_correction=flag) for flag in (False, True))
    assert torch.equal(plain.codes, corrected.codes)
    shift = corrected.bias - (plain.bias if bias else 0)
    before, after = ((linear(stats.sample) - module(stats.sample)).mean(0).detach() for module in (plain, corrected))
    assert after.norm() < 0.8 * before.norm()
    # one factor for all channels, at most 1: what is added is the mean error, shrunk
    factor = float(shift @ before / (before @ before))
    assert 0.2 < factor <= 1 + 1e-6
    torch.testing.assert_close(shift, factor * before, rtol=1e-3, atol=1e-4 * float(before.abs().amax()))
    fresh = inputs(400, 97)
    assert (linear(fresh) - corrected(fresh)).norm() < (linear(fresh) - plain(fresh)).norm()


def smoothing_by_hand(rule: str, alpha: float, x: dict[str, Tensor], weight: Tensor) -> Tensor:
    """The rules of the three papers, channel by channel, up to a common factor."""
    found = []
    for channel in range(weight.shape[1]):
        w = float(weight[:, channel].abs().max())
        if rule == "smooth":
            found.append(float(x["amax"][channel]) ** alpha / w ** (1 - alpha))
        elif rule == "awq":
            found.append(float(x["mean_abs"][channel]) ** alpha)
        else:
            found.append((float(x["salience"][channel]) / w) ** 0.5)
    return torch.tensor(found)


@pytest.mark.parametrize("rule, alpha", [
    ("smooth", 0.5), ("smooth", 0.8), ("svd", 0.3), ("awq", 0.5), ("awq", 1.0), ("balance", 0.0),
])  # fmt: skip
def test_smoothing_is_the_papers_rule(rule: str, alpha: float) -> None:
    linear, stats = layer()
    seen = torch.cat([inputs(12, index) for index in range(8)])
    assert stats.salience is not None
    x = {"amax": seen.abs().amax(0), "mean_abs": seen.abs().mean(0), "salience": stats.salience}
    extra = {"rank": 4} if rule == "svd" else {}
    module = make("w8a8_dynamic", optimizer=rule, alpha=alpha, seglinear=True, **extra)
    for branch, rows in enumerate((slice(0, 16), slice(16, 48))):
        expected = smoothing_by_hand("smooth" if rule == "svd" else rule, alpha, x, linear.weight.detach()[rows])
        ratio = module.smooth[branch] / expected
        # PTQ4DiT defines its factor too
        target = torch.ones(WIDTH) if rule == "balance" else ratio.mean() * torch.ones(WIDTH)
        torch.testing.assert_close(ratio, target, rtol=1e-4, atol=1e-6)


def test_balance_puts_both_sides_at_the_geometric_mean() -> None:
    linear, stats = layer()
    module = make("w8a8", segments=None, optimizer="balance")
    assert stats.salience is not None
    weight = linear.weight.detach().abs().amax(0)
    both = (stats.salience * weight).sqrt()
    torch.testing.assert_close(stats.salience / module.smooth[0], both, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weight * module.smooth[0], both, rtol=1e-4, atol=1e-6)


def choices(linear: nn.Linear, method: Method, cut: Segments, stats: InputStats) -> dict[tuple[int, int], Choice]:
    layout = lay_out_layer(linear, method, cut, "layer")
    problem = Problem(linear.weight.detach(), layout, stats, method.ranges, seed=method.seed, headroom="search")
    return _choices(problem, method.optimizer.scaling(problem))


def alphas(**fields: object) -> list[float | None]:
    linear, stats = layer()
    method = Method.of("m", PRECISIONS["w8a8_tensor"], seglinear=True, optimizer="smooth", **fields)  # type: ignore
    cut = Segments(output=(16, 32), input=(64, 128))
    found = choices(linear, method, cut, stats)
    assert set(found) == {(branch, index) for branch in (0, 1) for index in (0, 1)}
    return [choice.alpha for choice in found.values()]


def test_one_alpha_for_a_layer_or_one_for_every_segment() -> None:
    assert len(set(alphas(alpha="search_layer"))) == 1 and alphas(alpha="search_layer")[0] in (None, *ALPHAS)
    assert len(set(alphas(alpha="search"))) > 1
    assert alphas(alpha=0.3) == [0.3] * 4


def test_the_layers_alpha_has_the_least_error_over_all_segments() -> None:
    linear, stats = layer()
    method = Method.of("m", PRECISIONS["w8a8_dynamic"], seglinear=True, optimizer="smooth", alpha="search_layer")
    found = choices(linear, method, CUT, stats)
    errors = next(iter(found.values())).errors
    apart = choices(linear, method.changed(alpha="search"), CUT, stats)
    for alpha, total in errors.items():
        assert total == pytest.approx(sum(choice.errors[alpha] for choice in apart.values()))
    assert {choice.alpha for choice in found.values()} == {min(errors, key=lambda alpha: errors[alpha])}


@pytest.mark.parametrize("iterations", [0, 1])
def test_randomized_svd_is_nearly_as_good_and_seeded(iterations: int) -> None:
    linear, x = layer()[0], inputs(40, 96)
    fields = {"optimizer": "svd", "alpha": 0.5, "rank": 6, "iterations": iterations}
    exact, randomized, again, other = (
        make("w4a8", svd=how, seed=seed, **fields)
        for how, seed in (("exact", 0), ("randomized", 0), ("randomized", 0), ("randomized", 1))
    )
    errors = [(module(x) - linear(x)).norm() for module in (exact, randomized)]
    assert errors[1] < 1.1 * errors[0]
    assert torch.equal(randomized.low_rank_up, again.low_rank_up) and torch.equal(randomized.codes, again.codes)
    assert not torch.equal(randomized.low_rank_up, exact.low_rank_up)
    assert iterations or not torch.equal(randomized.low_rank_up, other.low_rank_up)


@pytest.mark.parametrize("fields", [
    {"rotate": True}, {"ranges": "mse"}, {"ranges": "percentile"}, {"bias_correction": True}, {"optimizer": "awq"},
])  # fmt: skip
def test_degenerate_inputs_stay_finite(fields: dict[str, object]) -> None:
    linear = nn.Linear(8, 4)
    for x in (torch.zeros(6, 8), torch.full((6, 8), 3.0), torch.eye(8)[:3], tensor(1, 8)):
        stats = InputStats("layer", 8, keep_gram=True)
        stats.update(x, None)
        for precision in ("w8a8_tensor", "w4a8_channel"):
            module = QuantLinear.from_float(linear, Method.of("m", PRECISIONS[precision], **fields), stats, None)  # type: ignore
            assert torch.isfinite(module(x)).all() and torch.isfinite(module(torch.zeros(2, 8))).all()
            assert (module(x) - linear(x)).norm() < (0.1 if "w8" in precision else 0.5) * linear(x).norm() + 1e-6


def test_rotation_needs_rows_only_where_scales_are_static() -> None:
    linear = layer()[0]
    assert QuantLinear.from_float(linear, presets.rtn("w4a8", rotate=True)).layout.transform("rotation")
    with pytest.raises(QuantizationError, match="needs statistics of its input"):
        QuantLinear.from_float(linear, presets.rtn("w8a8", rotate=True))


def test_headroom_of_rotated_inputs_is_judged_with_inputs_rounded_under_awq_too() -> None:
    """AWQ's own measure leaves inputs alone, to which every headroom looks alike, so that the widest would win."""
    linear, stats = nn.Linear(WIDTH, OUT), InputStats("layer", WIDTH)
    for index in range(128):
        stats.update(tensor(16, WIDTH, seed=index), index % 4)
    module = QuantLinear.from_float(
        linear, presets.awq("w8a8", alpha=0.0, rotate=True, ranges="amax", headroom="search"), stats
    )
    turned = stats.sample.double() @ rotation(turn_of(module), module.rotation_signs)
    assert float(module.input_scale) * 127 == pytest.approx(float(turned.abs().amax()), rel=0.3)
