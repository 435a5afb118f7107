"""The second decoder: another half beside the same encoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors import safe_open

from segquant_bench.pipelines.zoo import card, data, decoder, train, vae
from segquant_bench.pipelines.zoo.loop import Recipe


def _small() -> AutoencoderKL:
    torch.manual_seed(1)
    settings = {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": (4, 4, 8, 8),
        "norm_num_groups": 2,
        "latent_channels": 4,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "mid_block_add_attention": False,
        "scaling_factor": 0.6,
        "shift_factor": 0.1,
    }
    return AutoencoderKL(**settings).eval()


def test_a_fixed_twelfth_of_the_subjects_is_held_out_in_both_styles_and_splits():
    _, pictures = data.load_archive()
    mask = data.held_out(pictures)
    assert 0.07 < mask.mean() < 0.09
    assert np.array_equal(mask[:40], data.held_out(pictures[:40]))  # by the name alone
    sides: dict[str, set[bool]] = {}
    for picture, out in zip(pictures, mask, strict=True):
        sides.setdefault(picture.caption.rsplit(",", 1)[0], set()).add(bool(out))
    assert all(len(side) == 1 for side in sides.values())
    assert {picture.split for picture, out in zip(pictures, mask, strict=True) if out} == {"calibration", "evaluation"}


def test_a_deeper_autoencoder_begins_as_the_same_function_bit_by_bit():
    source = _small()
    deep = decoder.deepened(source, 2).eval()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        ours, theirs = (model.encode(images).latent_dist for model in (deep, source))
        assert torch.equal(ours.parameters, theirs.parameters)
        assert torch.equal(deep.decode(ours.mean).sample, source.decode(ours.mean).sample)
    assert type(deep) is AutoencoderKL
    assert [len(block.resnets) for block in deep.decoder.up_blocks] == [3, 3, 3, 3]
    assert (deep.config.scaling_factor, deep.config.shift_factor) == (0.6, 0.1)


def test_loss_is_minus_the_psnr_and_clamped_values_are_free():
    x = torch.rand(2, 3, 8, 8) - 0.5
    y = x + 0.2  # 20 log10(2 / 0.2) dB
    assert float(decoder.decibels(y, x)) == pytest.approx(-20, abs=0.01)
    white = torch.ones(1, 3, 8, 8)
    best = float(decoder.decibels(white, white))
    assert float(decoder.decibels(white + 0.3, white)) == float(decoder.decibels(-white - 0.3, -white)) == best
    assert float(decoder.decibels(white - 0.3, white)) > best + 20
    assert float(decoder.decibels(x + 2, x)) > -1  # beyond the range, where the picture is not at its end


def test_pictures_are_mirrored_and_shifted_but_never_mixed():
    images = torch.rand(64, 3, 8, 8)
    shown = decoder.moved(images, torch.Generator().manual_seed(0))
    plain = sum(torch.equal(a, b) for a, b in zip(shown, images, strict=True))
    mirrored = sum(torch.equal(a, b.flip(2)) for a, b in zip(shown, images, strict=True))
    assert 8 < plain < 26 and 8 < mirrored < 26
    torch.testing.assert_close(shown.sum((1, 2, 3)), images.sum((1, 2, 3)))
    assert torch.equal(shown, decoder.moved(images, torch.Generator().manual_seed(0)))


def test_held_out_pictures_teach_nothing_and_the_encoder_stays(tmp_path):
    source = _small()
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    images = torch.rand(6, 3, 32, 32) * 2 - 1
    mask = np.array([False, True, False, False, True, False])
    other = torch.where(torch.from_numpy(mask).view(-1, 1, 1, 1), torch.zeros(()), images)
    more = torch.rand(3, 3, 32, 32) * 2 - 1
    recipe = Recipe(steps=3, batch=4, lr=1e-2, warmup=1, average=0.5, muon=True)
    first, second = (
        decoder.train(source, x, mask, more, recipe, tmp_path / name, "cpu")
        for name, x in (("a", images), ("b", other))
    )
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in before.items())
    untrained = decoder.deepened(source).state_dict()
    changed = {name for name, tensor in first.state_dict().items() if not torch.equal(tensor, untrained[name])}
    assert changed and all(name.startswith("decoder.") for name in changed)


def test_more_pictures_teach_too(tmp_path):
    source, images, none = _small(), torch.rand(4, 3, 32, 32) * 2 - 1, np.zeros(4, bool)
    recipe = Recipe(steps=1, batch=4, lr=1e-2, warmup=1, muon=True)
    one, other = (
        decoder.train(source, images, none, torch.full((2, 3, 32, 32), value), recipe, tmp_path / str(value), "cpu")
        for value in (-0.5, 0.5)
    )
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_more_pictures_have_no_held_out_names_and_are_fetched_once(tmp_path, monkeypatch):
    names = [f"thing-{number}" for number in range(200)]
    shown: list[str] = []
    monkeypatch.setattr(data, "load_icons", lambda spec: {name: name for name in names})

    def rendered(svg: str) -> Image.Image:
        shown.append(svg)
        return Image.new("RGB", (64, 64), (0 if svg != "thing-0" else 255, 20, 30))

    monkeypatch.setattr(data, "render", rendered)
    first = data.more_pictures(tmp_path / "more.npz")
    listed = [data.Picture(f"noto-{name}", "", "", "") for name in names]
    unseen = {name for name, out in zip(names, data.held_out(listed), strict=True) if out}
    assert unseen and unseen.isdisjoint(shown) and unseen | set(shown) == set(names)
    count = len(shown)
    assert first.shape == (count, 64, 64, 3) and first.dtype == np.uint8
    assert np.array_equal(first, data.more_pictures(tmp_path / "more.npz")) and len(shown) == count


def test_the_decoder_alone_is_placed_in_a_folder_in_half_precision(tmp_path):
    work, output = tmp_path / "work", tmp_path / "pipeline"
    model = decoder.deepened(_small())
    model.save_pretrained(work / "vae_refined")
    train.place_decoder(work, output)
    with safe_open(output / "vae" / "diffusion_pytorch_model.safetensors", "pt") as tensors:
        assert {tensors.get_tensor(key).dtype for key in tensors.keys()} == {torch.bfloat16}  # noqa: SIM118
    placed = AutoencoderKL.from_pretrained(output / "vae")
    assert placed.config.layers_per_block == decoder.LAYERS
    assert not (output / "model_index.json").exists()  # nothing else is written


def test_a_work_folder_without_an_encoder_takes_the_pipelines(tmp_path):
    args = train.arguments(["--only", "decoder", "--work", str(tmp_path), "--output", str(tmp_path / "pipeline")])
    assert train.encoder_folder(args) == tmp_path / "pipeline" / "vae"
    vae.build().save_pretrained(tmp_path / "vae")
    assert train.encoder_folder(args) == tmp_path / "vae"


def test_a_card_keeps_the_lines_of_parts_that_this_work_did_not_train(tmp_path):
    old = tmp_path / "README.md"
    old.write_text("| vae | 1450 | 13 | 0.0347 |\n| decoder | 1200 | 13 | 0.0251 |\n| decoder of another table | 1 |\n")
    (tmp_path / "decoder.jsonl").write_text('{"step": 7, "loss": -30.0, "seconds": 120}\n')
    assert card.losses(tmp_path, old) == "| vae | 1450 | 13 | 0.0347 |\n| decoder | 7 | 2 | -30.0000 |"
    assert card.losses(tmp_path, tmp_path / "none.md") == "| decoder | 7 | 2 | -30.0000 |"
