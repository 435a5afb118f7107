"""Distances to the unquantized model's picture: one float64 per pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.metrics.images import batches, read_rgb
from segquant_bench.eval.metrics.networks.effnet import EFFNET_SIZE, EffNetLite0
from segquant_bench.eval.metrics.networks.resize import load_resized

LPIPS_FILES = {
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
Pairs = Sequence[tuple[Path, Path]]


def psnr(pairs: Pairs) -> np.ndarray:
    """In dB at data range 1.0; +inf for identical pictures."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    def one(a: Tensor, b: Tensor) -> Tensor:
        return peak_signal_noise_ratio(a, b, data_range=1.0, dim=(1, 2, 3), reduction="none")

    return each_pair(pairs, one)


def psnr_ceiling(picture: Path) -> float:
    """The largest finite PSNR at 8 bits."""
    return float(10.0 * np.log10(255.0**2 * read_rgb(picture).size))


def ssim(pairs: Pairs) -> np.ndarray:
    """Gaussian window 11 × 11, σ 1.5, edges mirrored, data range 1."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    def one(a: Tensor, b: Tensor) -> Tensor:
        found = cast(Tensor, structural_similarity_index_measure(a, b, data_range=1.0, reduction="none"))
        return found.reshape(1)

    return each_pair(pairs, one)


def lpips_weights(trunk: str) -> Path:
    """Where torch keeps the trunk's ImageNet weights; EvalError if missing."""
    weights = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_FILES[trunk]
    if not weights.is_file():
        raise EvalError(
            f"lpips with the {trunk} trunk was asked for, but {weights} does not exist; put torchvision's "
            f"{weights.name} there or ask for the metric perceptual"
        )
    return weights


def lpips(pairs: Pairs, trunk: str, device: str) -> np.ndarray:
    """LPIPS (Zhang et al., arXiv 1801.03924); EvalError if the trunk's weights are missing."""
    lpips_weights(trunk)
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    kind = cast(Literal["alex", "vgg", "squeeze"], trunk)  # Backends checks it
    metric = LearnedPerceptualImagePatchSimilarity(net_type=kind, normalize=True).to(device)

    def one(a: Tensor, b: Tensor) -> Tensor:
        found: Tensor = metric.net(a.to(device), b.to(device), normalize=True)
        return found.flatten()

    return each_pair(pairs, one)


def each_pair(pairs: Pairs, measure: Callable[[Tensor, Tensor], Tensor]) -> np.ndarray:
    # One pair at a time: pairs need not share a size.
    values = []
    with torch.inference_mode():
        for ours, theirs in pairs:
            values.append(measure(_unit(ours), _unit(theirs)).double().cpu())
    return torch.cat(values).numpy()


def _unit(path: Path) -> Tensor:
    return torch.from_numpy(read_rgb(path)).permute(2, 0, 1)[None].float() / 255.0


def perceptual(pairs: Pairs, model: EffNetLite0, device: str | torch.device, batch_size: int) -> np.ndarray:
    """LPIPS-like distance on EfficientNet-Lite0, not comparable with LPIPS numbers; 0 to 4.

    1/5 Σ_l 1/(H_l W_l) Σ_hw |φ_l(a) − φ_l(b)|² (LPIPS, eq. 1, channel weights one, mean over stages), φ_l being the
    output at strides 2 … 32, of unit length over channels, of pictures resized to 224 × 224.
    """
    values = []
    with torch.inference_mode():
        for batch in batches(pairs, batch_size):
            ours = model.stages(load_resized([a for a, _ in batch], EFFNET_SIZE).to(device))
            theirs = model.stages(load_resized([b for _, b in batch], EFFNET_SIZE).to(device))
            values.append(stage_distance(ours, theirs).double().cpu())
    return torch.cat(values).numpy()


def stage_distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """`perceptual` on stage outputs [n, c_l, h_l, w_l]; returns [n]."""
    total = torch.zeros(len(ours[0]), device=ours[0].device)
    for a, b in zip(ours, theirs, strict=True):
        gap = torch.nn.functional.normalize(a, dim=1) - torch.nn.functional.normalize(b, dim=1)
        total += gap.square().sum(dim=1).mean(dim=(1, 2))
    return total / len(ours)


def torchmetrics_backend() -> str:
    return f"torchmetrics {version('torchmetrics')}"
