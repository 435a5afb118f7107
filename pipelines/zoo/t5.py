"""The small FLUX's T5, trained against the pictures' latents."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from segquant_bench.pipelines.zoo.loop import Recipe, fit
from segquant_bench.pipelines.zoo.text import contrastive

CONTEXT = 12
WIDTH = 128
PIECES = 1000
SPECIAL = ("<pad>", "</s>", "<unk>")


def build_tokenizer(captions: Sequence[str], folder: Path) -> T5Tokenizer:
    """Unigram tokenizer in T5's format (<pad> 0, </s> 1, <unk> 2), with repeated words and printable ASCII letters."""
    scores = _pieces(captions) | _words(captions)
    vocabulary = [(name, 0.0) for name in SPECIAL]
    vocabulary += sorted((entry for entry in scores.items() if entry[0] not in SPECIAL), key=lambda e: (-e[1], e[0]))
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0, additional_special_tokens=[], model_max_length=CONTEXT)
    tokenizer.save_pretrained(folder)
    return T5Tokenizer.from_pretrained(folder)


def _pieces(captions: Sequence[str]) -> dict[str, float]:
    """Log-probabilities of pieces, by the unigram model of Kudo (1804.10959)."""
    # Put off: only training needs this package.
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    base = Tokenizer(models.Unigram())
    base.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=PIECES,
        special_tokens=list(SPECIAL),
        unk_token="<unk>",
        initial_alphabet=[chr(code) for code in range(33, 127)],
        show_progress=False,
    )
    base.train_from_iterator(captions, trainer)
    return dict(json.loads(base.to_str())["model"]["vocab"])


def _words(captions: Sequence[str]) -> dict[str, float]:
    counts = Counter(word for caption in captions for word in re.findall(r"[^\s,]+", caption))
    total = sum(counts.values()) + len(captions)  # every caption has its comma
    words = {f"▁{word}": math.log(count / total) for word, count in counts.items() if count > 1}
    return words | {",": math.log(len(captions) / total)}


def build(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """Three layers of width 128, gated GELU as T5 v1.1."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=WIDTH,
            d_kv=32,
            num_heads=4,
            num_layers=3,
            d_ff=2 * WIDTH,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            relative_attention_num_buckets=16,
            relative_attention_max_distance=CONTEXT,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=False,
        )
    )


def tokens(tokenizer: T5Tokenizer, captions: Sequence[str]) -> torch.Tensor:
    """int64 [n, 12], padded and cut as FLUX's."""
    ids: torch.Tensor = tokenizer(
        list(captions), padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


class Matcher(nn.Module):
    """T5's averaged states against a small perceptron on the latents."""

    def __init__(self, encoder: T5EncoderModel, latents: int, width: int = 256) -> None:
        super().__init__()
        self.encoder = encoder
        self.text = nn.Linear(WIDTH, width)
        self.picture = nn.Sequential(
            nn.Flatten(), nn.Linear(latents, 768), nn.GELU(), nn.Linear(768, 768), nn.GELU(), nn.Linear(768, width)
        )
        self.scale = nn.Parameter(torch.tensor(2.7))

    def forward(self, latents: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        states = self.encoder(input_ids=ids).last_hidden_state
        return contrastive(self.picture(latents).float(), self.text(states.mean(1)).float(), self.scale)


def train(
    latents: torch.Tensor, captions: Sequence[str], tokenizer: T5Tokenizer, recipe: Recipe, folder: Path, device: str
) -> T5EncoderModel:
    """Contrastive training on noisy latents float [n, c, h, w] of unit variance."""
    torch.manual_seed(4)
    matcher = Matcher(build(tokenizer), latents[0].numel()).to(device)
    ids = tokens(tokenizer, captions)

    def loss(step: int) -> torch.Tensor:
        source = torch.Generator().manual_seed(step + 4 * 10**6)
        index = torch.randint(len(latents), (recipe.batch,), generator=source)
        level = 0.7 * torch.rand(recipe.batch, 1, 1, 1, generator=source)
        seen = latents[index] + level * torch.randn(latents[index].shape, generator=source)
        with torch.autocast(device, torch.bfloat16):
            found: torch.Tensor = matcher(seen.to(device), ids[index].to(device))
        return found

    fit("t5", matcher, loss, recipe, folder)
    return matcher.encoder.cpu().eval()
