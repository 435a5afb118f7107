"""The same picture by torch, ONNX Runtime and OpenVINO: a whole pipeline whose denoiser an engine runs in integers.

    python examples/engines.py [PIPELINE]

PIPELINE is the folder of a StableDiffusion3Pipeline (default: the emoji pipeline of this repository). It takes minutes.
"""

import sys
from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline

import segquant
from segquant.deploy.run import load_exported

SOURCE = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1] / "pipelines" / "zoo" / "emoji_sd3"
PARTS = {"text_encoder_3": None, "tokenizer_3": None, "image_encoder": None, "feature_extractor": None}
pipe = StableDiffusion3Pipeline.from_pretrained(SOURCE, **PARTS, dtype=torch.float32)
calls: list[dict[str, torch.Tensor]] = []
hook = pipe.transformer.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True)


def picture() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.from_numpy(pipe("a red heart", num_inference_steps=8, generator=generator, output_type="np").images)


picture()
hook.remove()
segquant.quantize_(pipe.transformer, segquant.presets.segquant_a("w8a8", alpha=0.5, deploy="onnx"), calls)
denoiser, ours = pipe.transformer, picture()
for engine in ("ort", "openvino"):
    print(segquant.export_onnx(denoiser, f"outputs/exported-{engine}", (), calls[0], profile=engine))
    pipe.transformer = load_exported(f"outputs/exported-{engine}", engine)
    error = (picture() - ours).square().mean()
    print(f"{engine}: psnr {-10 * error.log10():.1f} dB against torch")
