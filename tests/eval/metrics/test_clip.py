from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segquant_bench.eval import Backends, EvalError, retrieval_accuracy
from segquant_bench.eval.metrics.clip import clip_scores, top1
from segquant_bench.eval.metrics.networks.clip import load_scorer


@pytest.fixture(scope="module")
def scorer(backends: Backends):
    return load_scorer(backends)


def test_scores_are_open_clips(scorer, clip_folder: Path, images: Path, prompts: list[str]) -> None:
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{clip_folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{clip_folder}")
    model.eval()
    paths = sorted(images.glob("*.png"))
    want = []
    with torch.inference_mode():
        for path, prompt in zip(paths, prompts, strict=True):
            with Image.open(path) as picture:
                picture_embedding = model.encode_image(preprocess(picture)[None])[0]
            caption_embedding = model.encode_text(tokenizer([prompt]))[0]
            cosine = torch.cosine_similarity(picture_embedding, caption_embedding, dim=0)
            want.append(100 * max(float(cosine), 0.0))
    got = clip_scores(scorer.embed_pictures(paths), scorer.embed_captions(prompts))
    np.testing.assert_allclose(got, want, atol=1e-3)
    assert len({round(value, 3) for value in want}) > 1


def test_scores_clip_at_zero() -> None:
    pictures = np.array([[1.0, 0.0], [0.6, 0.8]])
    captions = np.array([[-1.0, 0.0], [1.0, 0.0]])
    assert clip_scores(pictures, captions) == pytest.approx([0.0, 60.0])


def test_top1_of_perfect_and_of_chance_embeddings() -> None:
    rng = np.random.default_rng(0)
    captions = [f"c{i:03d}" for i in range(300)]
    vectors = rng.normal(size=(300, 64))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    embeddings = dict(zip(captions, vectors, strict=True))
    assert top1(vectors, captions, embeddings, candidates=100, seed=0).mean() == 1.0
    blind = rng.normal(size=(300, 64))
    assert 0.0 <= top1(blind, captions, embeddings, candidates=10, seed=0).mean() <= 0.17
    equal = dict.fromkeys(captions, vectors[0])
    assert top1(vectors, captions, equal, candidates=2, seed=0).mean() == 0.0


def test_top1_is_argmax_over_all_captions() -> None:
    """With as many candidates as captions nothing is drawn, so it is plain retrieval."""
    rng = np.random.default_rng(1)
    captions = [f"c{i:03d}" for i in range(40)]
    vectors = rng.normal(size=(40, 8))
    pictures = vectors + rng.normal(size=(40, 8))
    got = top1(pictures, captions, dict(zip(captions, vectors, strict=True)), candidates=40, seed=3)
    want = (pictures @ vectors.T).argmax(axis=1) == np.arange(40)
    np.testing.assert_array_equal(got.astype(bool), want)
    assert 0 < want.sum() < 40


def test_retrieval_accuracy(images: Path, prompts: list[str], backends: Backends) -> None:
    result = retrieval_accuracy(images, prompts, backends=backends, pool=["one more", *prompts])
    assert result.name == "caption_top1[tiny_clip]"
    assert 0.0 <= result.value <= 1.0
    assert result.n == len(prompts)
    assert "4 captions" in result.backend


def test_too_few_captions(images: Path, prompts: list[str], backends: Backends) -> None:
    with pytest.raises(EvalError, match="among 100 captions was asked for, but there are only 12"):
        retrieval_accuracy(images, prompts, backends=replace(backends, candidates=100))


def test_long_captions_are_told(scorer, caplog: pytest.LogCaptureFixture) -> None:
    scorer.embed_captions(["cat " * 40, "cat"])
    assert "1 of 2 captions fill the context" in caplog.text


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match=r"open_clip_config\.json does not exist; set clip_path"):
        load_scorer(Backends(clip="emoji_clip", clip_path=tmp_path / "nowhere"))


def test_no_path_and_no_architecture() -> None:
    with pytest.raises(EvalError, match="'emoji_clip' is no open_clip architecture; set clip_path"):
        load_scorer(Backends(clip="emoji_clip"))


def test_truncated_weights(clip_folder: Path, tmp_path: Path) -> None:
    for path in clip_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[:5000])
    with pytest.raises(EvalError, match="'tiny_clip' cannot be loaded"):
        load_scorer(Backends(clip="tiny_clip", clip_path=tmp_path))


def test_its_hash_is_of_what_it_computes_with(scorer, clip_folder: Path, backends: Backends, tmp_path: Path) -> None:
    """An edited model card is the same scorer, edited weights are another."""
    copy = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    (copy / "README.md").write_text("another card")
    assert load_scorer(replace(backends, clip_path=copy)).key == scorer.key
    config = copy / "open_clip_config.json"
    config.write_text(config.read_text() + "\n")
    assert load_scorer(replace(backends, clip_path=copy)).key != scorer.key
