"""The recipes of the families, tried out in a step or two on random inputs."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from segquant_bench.pipelines.zoo import canny, data, family, flux, sdxl, t5
from segquant_bench.pipelines.zoo.flow import Cached, attention, draw, plain_attention, rectified_flow
from segquant_bench.pipelines.zoo.loop import FlatMuon, Recipe, optimizers
from segquant_bench.pipelines.zoo.train import arguments


def cached(words: int, width: int, pooled: int, n: int = 6) -> Cached:
    source = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=source)

    empty = random(words, width), random(pooled)
    return Cached(random(n, 16, 8, 8), random(n, words, width), random(n, pooled), empty)


def test_a_step_draws_the_same_batch_again() -> None:
    latents = torch.randn(9, 2, 4, 4)
    first, again, other = (draw(latents, 5, seed, "cpu") for seed in (3, 3, 4))
    assert torch.equal(first.noise, again.noise) and torch.equal(first.index, again.index)
    assert not torch.equal(first.noise, other.noise)
    mixed, sigma, velocity = rectified_flow(first)
    assert ((sigma > 0) & (sigma < 1)).all()
    torch.testing.assert_close(mixed - sigma[:, None, None, None] * velocity, first.clean)


def test_dropped_captions_are_the_empty_one() -> None:
    inputs = cached(3, 4, 5)
    index, drop = torch.tensor([1, 2]), torch.tensor([False, True])
    words, pooled = inputs.text(index, drop, "cpu")
    assert torch.equal(words, torch.stack([inputs.words[1], inputs.empty[0]]))
    assert torch.equal(pooled, torch.stack([inputs.pooled[1], inputs.empty[1]]))


def test_plain_attention_is_put_back_and_takes_no_mask() -> None:
    original = torch.nn.functional.scaled_dot_product_attention
    with pytest.raises(RuntimeError), plain_attention("cpu"):
        assert torch.nn.functional.scaled_dot_product_attention is attention
        raise RuntimeError
    assert torch.nn.functional.scaled_dot_product_attention is original
    q = torch.randn(1, 1, 2, 4)
    with pytest.raises(ValueError, match="takes no mask"):
        attention(q, q, q, attn_mask=torch.ones(2, 2))


def test_muon_takes_kernels_as_matrices() -> None:
    torch.manual_seed(0)
    kernel, gradient = nn.Parameter(torch.randn(4, 3, 2, 2)), torch.randn(4, 3, 2, 2)
    matrix = nn.Parameter(kernel.detach().reshape(4, 12).clone())
    kernel.grad, matrix.grad = gradient.clone(), gradient.reshape(4, 12).clone()
    plain = torch.optim.Muon([matrix], 0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    flat = FlatMuon([kernel], 0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for part in (plain, flat):
        part.step()
        part.zero_grad()
    assert torch.equal(kernel.detach().reshape(4, 12), matrix.detach())
    assert kernel.grad is None
    flat.step()  # without gradients nothing moves
    assert torch.equal(kernel.detach().reshape(4, 12), matrix.detach())


def test_every_parameter_is_trained_once() -> None:
    for model, hidden in ((flux.build(), flux.hidden_matrix), (sdxl.build(), sdxl.hidden_matrix)):
        parts = optimizers(model, Recipe(1, 1, 1e-3, muon=True), hidden)
        trained = [p.data_ptr() for part in parts for group in part.param_groups for p in group["params"]]
        assert sorted(trained) == sorted(p.data_ptr() for p in model.parameters())
        muon = sum(p.numel() for p in parts[1].param_groups[0]["params"])
        assert muon > 0.9 * sum(p.numel() for p in model.parameters())


def test_t5s_tokenizer_knows_words_and_letters(tmp_path: Path) -> None:
    captions = [picture.caption for picture in data.load_archive()[1]]
    tokenizer = t5.build_tokenizer([*captions, ""], tmp_path)
    assert tokenizer.tokenize("red apple, noto style") == ["▁red", "▁apple", ",", "▁noto", "▁style"]
    ids = t5.tokens(tokenizer, captions)
    assert ids.shape == (len(captions), t5.CONTEXT)
    assert ((ids == 1).sum(1) == 1).all() and (ids[ids.argmin(1) == 0, -1] == 1).all(), "all end, none is cut"
    assert len(torch.unique(ids, dim=0)) == len(captions)
    unknown = tokenizer("qzx jk").input_ids
    assert unknown[-1] == 1 and tokenizer.unk_token_id not in unknown
    assert tokenizer.decode(tokenizer("red apple").input_ids, skip_special_tokens=True) == "red apple"


@pytest.mark.slow
def test_t5_learns_to_tell_captions_apart(tmp_path: Path) -> None:
    shapes = ("cat", "dog", "cup")
    captions = [f"{colour} {shape}, noto style" for colour in ("red", "blue", "green") for shape in shapes]
    tokenizer = t5.build_tokenizer([*captions, *captions], tmp_path / "tokenizer")
    latents = torch.randn(len(captions), 2, 4, 4, generator=torch.Generator().manual_seed(0))
    recipe = Recipe(60, 16, 5e-3, warmup=5)
    encoder = t5.train(latents, captions, tokenizer, recipe, tmp_path, "cpu")
    states = encoder(input_ids=t5.tokens(tokenizer, captions)).last_hidden_state
    assert states.shape == (9, t5.CONTEXT, t5.WIDTH)
    loss = json.loads((tmp_path / "t5.jsonl").read_text().splitlines()[0])["loss"]
    assert loss < 0.8 * math.log(16), "better than guessing among a batch"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # of RMSNorm's weight under autocast
def test_flux_learns_velocity_then_guidance(tmp_path: Path) -> None:
    inputs = cached(12, 128, 128)
    teacher = flux.train_velocity(inputs, Recipe(1, 2, 1e-3, muon=True), tmp_path, "cpu")
    before = copy.deepcopy(teacher.state_dict())
    student = flux.distil_guidance(teacher, inputs, Recipe(2, 2, 1e-3, muon=True), tmp_path, "cpu")
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert not torch.equal(student.proj_out.weight, teacher.proj_out.weight)
    assert (tmp_path / "velocity.pt").exists() and (tmp_path / "guidance.pt").exists()


def test_the_target_of_distillation_is_guided(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A student that adds nothing to its teacher has the loss of guidance's own contribution, (g − 1)² of the gap."""
    inputs = cached(12, 128, 128)
    conditional, free = torch.full((2, 16, 64), 3.0), torch.full((2, 16, 64), 1.0)
    guidance: list[torch.Tensor] = []

    def velocity(model, packed, sigma, text, value):
        if torch.is_grad_enabled():
            guidance.append(value)
            return conditional + 0 * next(model.parameters()).sum()
        dropped = torch.equal(text[0], inputs.empty[0].expand_as(text[0]))
        return free if dropped else conditional

    losses: list[float] = []

    def fit(name, module, loss, recipe, folder, hidden):
        losses.append(loss(0).item())
        return module

    monkeypatch.setattr(flux, "velocity", velocity)
    monkeypatch.setattr(flux, "fit", fit)
    flux.distil_guidance(flux.build(), inputs, Recipe(1, 2, 1e-3), tmp_path, "cpu")
    expected = ((guidance[0] - 1) * 2).square().mean().item()
    assert losses == [pytest.approx(expected, rel=1e-5)] and 1 <= guidance[0].min() <= guidance[0].max() <= 6


def test_sdxl_trains_a_step_and_samples_what_it_learnt(tmp_path: Path) -> None:
    model = sdxl.train_unet(cached(16, 256, 128), Recipe(1, 2, 1e-3, muon=True), tmp_path, "cpu")
    assert all(torch.isfinite(p).all() for p in model.parameters())
    kept = sdxl.scheduler().alphas_cumprod
    assert kept[-1] < 1e-6 < kept[0] < 1, "the schedule ends in pure noise"


@pytest.mark.slow
def test_a_new_controlnet_changes_nothing_and_then_learns(tmp_path: Path) -> None:
    transformer = canny.load_sibling().transformer
    model = canny.build(transformer)
    for copy_, block in zip(model.transformer_blocks, transformer.transformer_blocks, strict=False):
        assert torch.equal(copy_.ff.net[2].weight, block.ff.net[2].weight)
    inputs = {
        "hidden_states": torch.randn(2, 16, 8, 8), "encoder_hidden_states": torch.randn(2, 16, 256),
        "timestep": torch.tensor([500.0, 20.0]),
    }  # fmt: skip
    pooled = torch.randn(2, 256)
    with torch.no_grad():
        control = model(controlnet_cond=torch.randn(2, 16, 8, 8), pooled_projections=0 * pooled, **inputs)
        assert len(control.controlnet_block_samples) == canny.LAYERS
        assert not any(residual.any() for residual in control.controlnet_block_samples)
    before = copy.deepcopy(transformer.state_dict())
    text = cached(16, 256, 256)
    trained = canny.train_controlnet(
        transformer, text, torch.randn(6, 16, 8, 8), Recipe(2, 2, 1e-2, warmup=1, muon=True), tmp_path, "cpu"
    )
    assert all(torch.equal(before[name], value) for name, value in transformer.state_dict().items())
    assert trained.controlnet_blocks[0].weight.any()


def test_written_folders_share_files_by_links(tmp_path: Path) -> None:
    from diffusers import FluxPipeline

    captions = ["red cat, noto style", "blue dog, noto style"] * 2
    tokenizer = t5.build_tokenizer(captions, tmp_path / "tokenizer")
    pipe = flux.assemble(flux.build(), t5.build(tokenizer), tokenizer)
    target = tmp_path / "emoji_flux"
    family.write(pipe, target, flux.SHARED)
    family.write(pipe, target, flux.SHARED)  # written over
    links = [path for path in target.rglob("*") if path.is_symlink()]
    assert {path.parent.name for path in links} == set(flux.SHARED)
    assert all(path.resolve().is_relative_to(family.SIBLING) for path in links)
    assert sum(path.stat().st_size for path in target.rglob("*") if path.is_file()) < 30e6
    loaded = FluxPipeline.from_pretrained(target)
    assert torch.equal(loaded.vae.decoder.conv_in.weight.float(), pipe.vae.decoder.conv_in.weight.float())
    assert loaded.tokenizer_2("blue dog").input_ids == tokenizer("blue dog").input_ids


def test_arguments_of_the_families() -> None:
    found = arguments(["--family", "canny"])
    assert (found.work.name, found.output.name) == ("emoji_sd3_canny", "emoji_sd3_canny")
    with pytest.raises(SystemExit):
        arguments(["--family", "flux", "--only", "denoiser"])
    setting = family.Setting(found.work, found.output, "cpu", minutes=60, steps=5)
    assert setting.recipe(Recipe(100, 1, 1e-3), 0.25) == Recipe(5, 1, 1e-3, minutes=15)
