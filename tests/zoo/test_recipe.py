"""The recipe of the embedded pipeline, tried out in a few steps."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from segquant_bench.pipelines.zoo import data, denoiser, text
from segquant_bench.pipelines.zoo.loop import Recipe, fit, rate


def test_skin_tones_are_dropped_and_squares_are_not():
    names = {"waving-hand", "waving-hand-medium", "white-square", "white-medium-square", "artist", "man-walking"}
    assert data.is_skin_tone_variant("waving-hand-medium", names)
    assert data.is_skin_tone_variant("artist-medium-dark-skin-tone", names)
    assert not data.is_skin_tone_variant("white-square", names)
    assert not data.is_skin_tone_variant("medium-square", names)
    assert not data.is_skin_tone_variant("artist", names)


def test_both_styles_of_a_subject_fall_on_the_same_side():
    _, pictures = data.load_archive()
    sides: dict[str, set[str]] = {}
    for picture in pictures:
        sides.setdefault(picture.caption.rsplit(",", 1)[0], set()).add(picture.split)
    assert all(len(side) == 1 for side in sides.values())
    assert {picture.split for picture in pictures} == {"calibration", "evaluation"}


def test_archive_holds_the_pictures_it_names():
    pictures, listed = data.load_archive()
    assert pictures.shape == (len(listed), 64, 64, 3)
    assert len(listed) > 3000
    assert len({p.caption for p in listed}) == len(listed)
    assert all(corner.min() > 200 for corner in pictures[:50, 0, 0])  # drawn on white


def test_render_places_a_shape_on_white():
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 4 4"><rect width="2" height="4" fill="#f00"/></svg>'
    pytest.importorskip("resvg_py", reason="rendering needs the extra `train`")
    image = data.render(svg, 8)
    assert image.size == (8, 8)
    assert image.getpixel((1, 4)) == (255, 0, 0)
    assert image.getpixel((6, 4)) == (255, 255, 255)


def _regression(folder, steps, minutes=None):
    torch.manual_seed(0)
    model = nn.Linear(4, 4, bias=False)
    target = torch.randn(4, 4)

    def loss(step: int) -> torch.Tensor:
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        return (model(x) - x @ target.T).square().mean()

    recipe = Recipe(steps=60, batch=16, lr=1.0, warmup=5, average=0.9, muon=True, minutes=minutes)
    stop = recipe.__dict__ | {"steps": steps}
    return fit("toy", model, loss, Recipe(**stop), folder), target


def test_training_converges_and_logs(tmp_path):
    model, target = _regression(tmp_path, 60)
    assert (model.weight - target).norm() < 0.3 * target.norm()
    assert json.loads((tmp_path / "toy.jsonl").read_text().splitlines()[0])["step"] == 50


def test_a_finished_run_resumes_to_the_same_weights(tmp_path):
    first, _ = _regression(tmp_path, 60)
    again, _ = _regression(tmp_path, 60)
    assert torch.equal(first.weight, again.weight)


def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path):
    whole, _ = _regression(tmp_path / "whole", 60)

    class Stop(Exception):
        pass

    torch.manual_seed(0)
    model = nn.Linear(4, 4, bias=False)
    target = torch.randn(4, 4)

    def loss(step: int, until: int = 40) -> torch.Tensor:
        if step == until:
            raise Stop
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        return (model(x) - x @ target.T).square().mean()

    recipe = Recipe(steps=60, batch=16, lr=1.0, warmup=5, average=0.9, muon=True)
    with pytest.raises(Stop):
        fit("toy", model, loss, recipe, tmp_path / "part", checkpoint_seconds=0)
    resumed, _ = _regression(tmp_path / "part", 60)
    torch.testing.assert_close(resumed.weight, whole.weight, rtol=0, atol=0)


def test_rate_warms_up_and_decays():
    recipe = Recipe(steps=100, batch=1, lr=1.0, warmup=10)
    assert rate(0.0, 0, recipe) == pytest.approx(0.1)
    assert rate(0.1, 10, recipe) > rate(0.5, 50, recipe) > rate(1.0, 100, recipe) == pytest.approx(recipe.floor)


def test_tokenizer_knows_its_words_and_survives_others(tmp_path):
    captions = [p.caption for p in data.load_archive()[1]][:200]
    tokenizer = text.build_tokenizer(captions, tmp_path)
    ids = text.tokens(tokenizer, [captions[0], "zyx 🎉 qqq", ""])
    assert ids.shape == (3, text.CONTEXT)
    assert ids[:, 0].tolist() == [tokenizer.bos_token_id] * 3
    assert (ids == tokenizer.eos_token_id).sum(1).tolist() == [1, 1, 1]
    assert tokenizer.eos_token_id == max(tokenizer.get_vocab().values())  # open_clip pools at the largest id
    assert tokenizer.decode(ids[0], skip_special_tokens=True).startswith("1 st place")


def test_plain_attention_is_torch_attention():
    q, k, v = (torch.randn(2, 3, 5, 8, dtype=torch.float64) for _ in range(3))
    torch.testing.assert_close(
        denoiser.attention(q, k, v), torch.nn.functional.scaled_dot_product_attention(q, k, v), rtol=1e-12, atol=1e-12
    )


def test_contrastive_loss_is_low_for_matching_pairs():
    x = torch.eye(8)
    scale = torch.tensor(4.0)
    assert text.contrastive(x, x, scale) < 0.01 < text.contrastive(x, x.roll(1, 0), scale)


@pytest.mark.slow
def test_denoiser_trains_a_step(tmp_path):
    n = 4
    latents, words, pooled = torch.randn(n, 16, 8, 8), torch.randn(n, 16, 256), torch.randn(n, 256)
    original = torch.nn.functional.scaled_dot_product_attention
    try:
        model = denoiser.train(
            latents, words, pooled, (words[0], pooled[0]), Recipe(2, 4, 1e-3, muon=True), tmp_path, "cpu"
        )
    finally:
        torch.nn.functional.scaled_dot_product_attention = original
    assert all(torch.isfinite(p).all() for p in model.parameters())
