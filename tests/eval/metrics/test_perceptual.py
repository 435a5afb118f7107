from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.metrics.networks.effnet import EffNetLite0
from segquant_bench.eval.metrics.networks.pairs import (
    LPIPS_FILES,
    lpips,
    perceptual,
    psnr,
    psnr_ceiling,
    ssim,
    stage_distance,
)
from tests.eval.support import noisy, write_pictures


@pytest.fixture
def pairs(images: Path, reference: Path) -> list[tuple[Path, Path]]:
    return list(zip(sorted(images.glob("*.png")), sorted(reference.glob("*.png")), strict=True))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture, dtype=np.float64) / 255.0


def test_psnr_by_hand(pairs) -> None:
    want = [-10 * np.log10(np.mean((pixels(a) - pixels(b)) ** 2)) for a, b in pairs]
    np.testing.assert_allclose(psnr(pairs), want, rtol=1e-5)
    assert 25 < np.mean(want) < 40


def test_psnr_range_is_fixed(tmp_path: Path) -> None:
    """A dark pair: a range taken from the picture would give 20·log10(255/20) dB less."""
    dark = np.full((1, 16, 16, 3), 20, dtype=np.uint8)
    a, b = write_pictures(tmp_path / "a", dark), write_pictures(tmp_path / "b", dark - 5)
    got = psnr([(a / "00000.png", b / "00000.png")])
    assert got[0] == pytest.approx(20 * np.log10(255 / 5), rel=1e-5)


def test_psnr_of_identical_and_nearly_identical(tmp_path: Path, reference_pictures: np.ndarray) -> None:
    changed = reference_pictures[:1].copy()
    changed[0, 3, 4, 1] ^= 1
    a, b = write_pictures(tmp_path / "a", reference_pictures[:1]), write_pictures(tmp_path / "b", changed)
    first = a / "00000.png"
    assert np.isposinf(psnr([(first, first)])[0])
    assert psnr([(first, b / "00000.png")])[0] == pytest.approx(psnr_ceiling(first), rel=1e-4)


def ssim_by_hand(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004, Gaussian window 11, σ 1.5, mirrored at the edges."""
    from scipy.ndimage import gaussian_filter

    def blur(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, sigma=1.5, truncate=3.34, mode="mirror")

    scores = []
    for c in range(3):
        x, y = a[..., c], b[..., c]
        mx, my = blur(x), blur(y)
        vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
        c1, c2 = 0.01**2, 0.03**2
        scores.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2)))
    return float(np.mean(scores))


def test_ssim_by_hand(pairs) -> None:
    want = [ssim_by_hand(pixels(a), pixels(b)) for a, b in pairs]
    np.testing.assert_allclose(ssim(pairs), want, atol=2e-4)
    assert ssim([(pairs[0][0], pairs[0][0])])[0] == pytest.approx(1.0, abs=1e-6)


def test_stage_distance_by_loops() -> None:
    g = torch.Generator().manual_seed(0)
    ours = [torch.randn(2, 3, 4, 5, generator=g), torch.randn(2, 6, 2, 2, generator=g)]
    theirs = [torch.randn(2, 3, 4, 5, generator=g), torch.randn(2, 6, 2, 2, generator=g)]
    want = np.zeros(2)
    for a, b in zip(ours, theirs, strict=True):
        for n in range(2):
            places = []
            for h in range(a.shape[2]):
                for w in range(a.shape[3]):
                    u, v = a[n, :, h, w].double().numpy(), b[n, :, h, w].double().numpy()
                    places.append(np.sum((u / np.linalg.norm(u) - v / np.linalg.norm(v)) ** 2))
            want[n] += np.mean(places) / 2
    np.testing.assert_allclose(stage_distance(ours, theirs).numpy(), want, rtol=1e-5)


def test_perceptual_grows_with_noise(tmp_path: Path, reference: Path, reference_pictures: np.ndarray) -> None:
    model, cpu = EffNetLite0(), torch.device("cpu")
    clean = sorted(reference.glob("*.png"))[:2]
    means = []
    for sigma in (0.0, 4.0, 40.0):
        folder = write_pictures(tmp_path / str(sigma), noisy(reference_pictures[:2], sigma, seed=5))
        pairs = list(zip(sorted(folder.glob("*.png")), clean, strict=True))
        means.append(perceptual(pairs, model, cpu, batch_size=2).mean())
    assert means[0] == 0.0
    assert 0.0 < means[1] < means[2] <= 4.0


def test_lpips_without_weights(pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(EvalError, match=r"alexnet-owt-7be5be79\.pth does not exist.*perceptual"):
        lpips(pairs, "alex", "cpu")


def test_lpips_is_torchmetrics(pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With weights on disk (random ones here) the values are torchmetrics' own, pair by pair."""
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity
    from torchvision.models import squeezenet1_1

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(squeezenet1_1(weights=None).state_dict(), folder / LPIPS_FILES["squeeze"])
    got = lpips(pairs[:2], "squeeze", "cpu")
    a, b = (
        torch.stack([torch.from_numpy(pixels(p)).permute(2, 0, 1).float() for p in side])
        for side in zip(*pairs[:2], strict=True)
    )
    want = learned_perceptual_image_patch_similarity(a, b, net_type="squeeze", normalize=True, reduction="none")
    np.testing.assert_allclose(got, want.flatten().detach().numpy(), rtol=1e-4)
    assert (got > 0).all()
