"""Run by test_processes.py in a process that cannot import segquant, until it is told to.

Arguments: the folder of files.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

BANNED = True


class NoSegquant:
    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        if BANNED and name.partition(".")[0] == "segquant":
            raise ImportError("segquant is not installed here")


sys.meta_path.insert(0, NoSegquant)  # type: ignore[arg-type]

import diffusers  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

KIND = diffusers.SD3Transformer2DModel


def main(folder: Path) -> None:
    global BANNED
    expected = torch.load(folder / "expected.pt")
    for ours in ("save_quantized", "save_pretrained"):
        try:
            KIND.from_pretrained(folder / ours)
        except ValueError as error:
            assert "Unknown quantization type, got segquant" in str(error), error
        else:
            raise SystemExit("loaded without segquant")
    close(KIND.from_pretrained(folder / "torchao", torch_dtype=torch.float32), expected)
    close(of_comfy(folder), expected)
    BANNED = False
    import segquant.deploy.diffusers  # noqa: F401

    for ours in ("save_quantized", "save_pretrained"):
        assert torch.equal(run(KIND.from_pretrained(folder / ours), expected), expected["output"])


def run(model: Any, expected: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**expected["inputs"])[0]
    return found


def close(model: Any, expected: dict[str, Any]) -> None:
    """As near to the float model as ours."""
    exact, ours = expected["exact"], expected["output"]
    assert (run(model, expected) - exact).norm() < 1.3 * (ours - exact).norm()


def of_comfy(folder: Path) -> Any:
    """diffusers' float model with ComfyUI's tensors, as its loader makes them."""
    from comfy_kitchen.tensor import QuantizedTensor, TensorWiseINT8Layout

    tensors = load_file(folder / "comfy.safetensors")
    model = KIND.from_pretrained(folder / "float")
    layers = [name.removesuffix(".comfy_quant") for name in tensors if name.endswith(".comfy_quant")]
    assert layers
    for name in layers:
        assert json.loads(bytes(tensors.pop(f"{name}.comfy_quant").tolist()))["format"] == "int8_tensorwise"
        codes, scale = tensors.pop(f"{name}.weight"), tensors.pop(f"{name}.weight_scale")
        params = TensorWiseINT8Layout.Params(scale=scale, orig_dtype=torch.float32, orig_shape=tuple(codes.shape))
        weight = QuantizedTensor(codes, "TensorWiseINT8Layout", params)
        model.get_submodule(name).weight = torch.nn.Parameter(weight, requires_grad=False)
    assert not model.load_state_dict(tensors, strict=False).unexpected_keys
    return model


main(Path(sys.argv[1]))
