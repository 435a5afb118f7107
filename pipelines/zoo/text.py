"""Tokenizer, two CLIP text encoders, and an open_clip scorer trained apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from segquant_bench.pipelines.zoo.loop import Recipe, fit

CONTEXT = 16
WIDTH = 128


def build_tokenizer(captions: Sequence[str], folder: Path) -> CLIPTokenizer:
    """CLIP's byte pairs, learnt on the captions (about 2,500 entries)."""
    # Put off: only training needs this package.
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    special = ["<|startoftext|>", "<|endoftext|>"]
    base = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    base.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    pattern = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    split = pre_tokenizers.Split(pattern, "removed", invert=True)
    base.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=2500,
        special_tokens=special,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    base.train_from_iterator(captions, trainer)
    model = json.loads(base.to_str())["model"]
    merges = [tuple(m) for m in model["merges"]]
    # Like CLIP's own: bytes first ("!" is 0 and pads), so that unseen words still tokenize; end of text last,
    # because open_clip pools where the token id is largest.
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    ordered = [*letters, *(f"{x}</w>" for x in letters), *sorted(model["vocab"], key=model["vocab"].get)]
    ordered = [*(x for x in dict.fromkeys(ordered) if x not in special), *special]
    vocab = {x: i for i, x in enumerate(ordered)}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, pad_token="!", model_max_length=CONTEXT)
    tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def text_config(tokenizer: CLIPTokenizer, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        projection_dim=WIDTH,
        hidden_act=activation,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def tokens(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> torch.Tensor:
    """int64 [n, 16], padded and cut as in the pipeline."""
    ids: torch.Tensor = tokenizer(
        list(captions), padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def augment(images: torch.Tensor, draw: torch.Generator, strength: float) -> torch.Tensor:
    """Shift, rescale, blur, brightness and noise."""
    n = len(images)
    shift = (torch.rand(n, 2, generator=draw) - 0.5) * 0.25
    scale = 1 + (torch.rand(n, generator=draw) - 0.5) * 0.3
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale, scale, shift
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    images = F.grid_sample(images - 1, grid, align_corners=False) + 1  # outside is white
    blur = F.interpolate(F.avg_pool2d(images, 4), scale_factor=4.0, mode="bilinear")
    mix = torch.rand(n, 1, 1, 1, generator=draw) * strength
    images = images * (1 - mix) + blur * mix
    images = images * (1 + 0.2 * strength * (torch.rand(n, 1, 1, 1, generator=draw) - 0.5))
    level = 0.3 * strength * torch.rand(n, 1, 1, 1, generator=draw)
    return images + level * torch.randn(images.shape, generator=draw)


def contrastive(images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Symmetric InfoNCE of CLIP on unit vectors [n, d]."""
    logits = scale.exp().clamp(max=100) * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


class TextEncoders(nn.Module):
    """Two text towers against one vision tower."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.first = CLIPTextModelWithProjection(text_config(tokenizer, "quick_gelu"))
        self.second = CLIPTextModelWithProjection(text_config(tokenizer, "gelu"))
        self.vision = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=192,
                intermediate_size=768,
                num_hidden_layers=4,
                num_attention_heads=4,
                image_size=64,
                patch_size=16,
                projection_dim=2 * WIDTH,
            )
        )
        self.scale = nn.Parameter(torch.tensor(2.7))

    def forward(self, pixels: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        image = self.vision(pixel_values=pixels).image_embeds.float()
        texts = [tower(input_ids=ids).text_embeds.float() for tower in (self.first, self.second)]
        halves = image.chunk(2, dim=-1)
        losses = [contrastive(i, t, self.scale) for i, t in zip(halves, texts, strict=True)]
        return (losses[0] + losses[1]) / 2


def train_encoders(
    images: torch.Tensor, captions: Sequence[str], tokenizer: CLIPTokenizer, recipe: Recipe, folder: Path, device: str
) -> tuple[CLIPTextModelWithProjection, CLIPTextModelWithProjection]:
    """Contrastive training; `images` float [n, 3, 64, 64] in −1 … 1."""
    torch.manual_seed(1)
    towers = TextEncoders(tokenizer).to(device)
    ids = tokens(tokenizer, captions)

    def loss(step: int) -> torch.Tensor:
        draw = torch.Generator().manual_seed(step)
        index = torch.randint(len(images), (recipe.batch,), generator=draw)
        pixels = augment(images[index], draw, 0.5)
        with torch.autocast(device, torch.bfloat16):
            found: torch.Tensor = towers(pixels.to(device), ids[index].to(device))
        return found

    fit("text", towers, loss, recipe, folder)
    return towers.first, towers.second


SCORER = {
    "model_cfg": {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 64, "layers": 4, "width": 192, "head_width": 48, "patch_size": 16},
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": 0,
            "width": 128,
            "heads": 4,
            "layers": 3,
            "hf_tokenizer_name": "emoji_clip",
            "pad_id": 0,
        },
    },
    "preprocess_cfg": {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
}


def train_scorer(
    images: torch.Tensor, captions: Sequence[str], recipe: Recipe, work: Path, folder: Path, device: str
) -> nn.Module:
    """Train the judge; writes an open_clip `local-dir:` folder (fp16)."""
    # Put off: only training needs this package.
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(2)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(captions, folder)
    config = json.loads(json.dumps(SCORER))
    config["model_cfg"]["text_cfg"]["vocab_size"] = len(tokenizer)
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    model: nn.Module = open_clip.CLIP(**config["model_cfg"]).to(device)
    ids = tokens(tokenizer, captions)

    def loss(step: int) -> torch.Tensor:
        draw = torch.Generator().manual_seed(step + 10**6)
        index = torch.randint(len(images), (recipe.batch,), generator=draw)
        pixels = augment(images[index], draw, 0.7).to(device)
        with torch.autocast(device, torch.bfloat16):
            image, text, _ = model(pixels, ids[index].to(device))
        return contrastive(image.float(), text.float(), model.get_parameter("logit_scale"))

    fit("scorer", model, loss, recipe, work)
    state = {k: v.half().contiguous() for k, v in model.state_dict().items() if k != "attn_mask"}
    save_file(state, folder / "open_clip_model.safetensors")
    return model


@torch.no_grad()
def agreement(model: Any, images: torch.Tensor, ids: torch.Tensor, candidates: int = 100) -> float:
    """Share of pictures closest to their own of `candidates` captions (consecutive blocks)."""
    right = []
    for x, y in zip(images.split(candidates), ids.split(candidates), strict=True):
        image, text = model.encode_image(x, normalize=True), model.encode_text(y, normalize=True)
        right.append((image @ text.T).argmax(1) == torch.arange(len(x)))
    return float(torch.cat(right).float().mean())
