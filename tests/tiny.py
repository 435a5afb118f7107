"""The smallest pipeline and data set that everything can run on: random weights, a second to build."""

from __future__ import annotations

import json
import zipfile
from io import BytesIO
from pathlib import Path

import torch

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220), "yellow": (240, 210, 40)}
SHAPES = ("circle", "square", "ring", "cross")


def tiny_tokenizer(max_length: int = 16):
    """A CLIPTokenizer over letters and digits, one token each; needs no file and no network."""
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.-'"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=max_length)


def tiny_text_encoder(width: int):
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    tokenizer = tiny_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config).eval()


def tiny_denoiser(layers: int = 2):
    """An SD3Transformer2DModel of width 64 (two heads of 32) on 4×16×16 latents."""
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_layers=layers,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=64,
        caption_projection_dim=64,
        pooled_projection_dim=64,
        out_channels=4,
        pos_embed_max_size=16,
    ).eval()


def tiny_sd3_pipeline(path: Path, seed: int = 0) -> Path:
    """Write a random StableDiffusion3Pipeline (32×32 pictures, no third text encoder) for from_pretrained.

    Returns `path`. The same seed writes the same weights.
    """
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            block_out_channels=(16, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=8,
            sample_size=32,
            scaling_factor=1.0,
            shift_factor=0.0,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ).eval()
        pipeline = StableDiffusion3Pipeline(
            transformer=tiny_denoiser(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=vae,
            text_encoder=tiny_text_encoder(32),
            tokenizer=tiny_tokenizer(),
            text_encoder_2=tiny_text_encoder(32),
            tokenizer_2=tiny_tokenizer(),
            text_encoder_3=None,
            tokenizer_3=None,
        )
    pipeline.save_pretrained(path)
    return path


def _picture(colour: tuple[int, int, int], shape: str, size: int):
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(image)
    low, high = size // 6, size - size // 6
    if shape == "circle":
        draw.ellipse((low, low, high, high), fill=colour)
    elif shape == "square":
        draw.rectangle((low, low, high, high), fill=colour)
    elif shape == "ring":
        draw.ellipse((low, low, high, high), outline=colour, width=size // 8)
    else:
        draw.line((low, low, high, high), fill=colour, width=size // 8)
        draw.line((low, high, high, low), fill=colour, width=size // 8)
    return image


def tiny_dataset(path: Path, size: int = 32) -> Path:
    """Write 16 captioned shapes (8 for calibration, 8 for evaluation) into an archive like `emoji.zip`."""
    rows = []
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(16):
            colour, shape = list(COLOURS)[index % 4], SHAPES[index // 4]
            buffer = BytesIO()
            _picture(COLOURS[colour], shape, size).save(buffer, format="PNG")
            archive.writestr(f"images/{index:05d}.png", buffer.getvalue())
            split = "calibration" if (index + index // 4) % 2 else "evaluation"
            row = {
                "id": index,
                "file": f"images/{index:05d}.png",
                "caption": f"{colour} {shape}",
                "split": split,
            }
            rows.append(json.dumps(row))
        archive.writestr("captions.jsonl", "\n".join(rows) + "\n")
    return path
