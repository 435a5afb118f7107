"""`python -m pipelines.zoo.card`: measure the embedded pipeline and write its model card and sample sheet."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from string import Template

import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image, ImageDraw, ImageFont

from eval import Backends, retrieval_accuracy
from pipelines.generate import generate_images
from pipelines.zoo import data, text, vae

ZOO = Path(__file__).parent
CALL = {"num_inference_steps": 20, "guidance_scale": 4.0, "height": 64, "width": 64, "max_sequence_length": 0}
SHEET = (8, 12)


def evaluation_prompts(count: int, seed: int = 0) -> list[str]:
    """A seeded draw of the evaluation captions."""
    captions = [p.caption for p in data.load_archive()[1] if p.split == "evaluation"]
    order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(seed)).tolist()
    return [captions[i] for i in order[:count]]


def sheet(folder: Path, prompts: list[str], path: Path) -> None:
    """The first pictures with their captions: nothing is picked by hand."""
    rows, columns = SHEET
    tile, label = 96, 30
    page = Image.new("RGB", (columns * (tile + 8), rows * (tile + label)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(10)
    for i, prompt in enumerate(prompts[: rows * columns]):
        x, y = (i % columns) * (tile + 8) + 4, (i // columns) * (tile + label)
        picture = Image.open(folder / f"{i:05d}.png").resize((tile, tile), Image.Resampling.BICUBIC)
        page.paste(picture, (x, y))
        for line, words in enumerate(wrap(prompt, 18)[:2]):
            pen.text((x, y + tile + 1 + 12 * line), words, fill="black", font=font)
    page.save(path, optimize=True)


def wrap(words: str, width: int) -> list[str]:
    lines = [""]
    for word in words.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def losses(work: Path) -> str:
    """One line a stage: the last recorded loss, steps and minutes."""
    rows = []
    for name in ("vae", "text", "scorer", "denoiser", "decoder"):
        record = work / f"{name}.jsonl"
        if record.exists():
            last = json.loads(record.read_text().splitlines()[-1])
            rows.append(f"| {name} | {last['step']} | {last['seconds'] / 60:.0f} | {last['loss']:.4f} |")
    return "\n".join(rows)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pipeline", type=Path, default=ZOO / "emoji_sd3")
    parser.add_argument("--work", type=Path, default=Path("outputs/zoo/emoji_sd3"), help="training logs")
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--steps", type=int, default=CALL["num_inference_steps"])
    parser.add_argument("--guidance", type=float, default=CALL["guidance_scale"])
    parser.add_argument("--measure-only", action="store_true", help="print, and write nothing into the pipeline")
    args = parser.parse_args(argv)
    pipe = StableDiffusion3Pipeline.from_pretrained(
        args.pipeline, text_encoder_3=None, tokenizer_3=None, torch_dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
    prompts = evaluation_prompts(args.count)
    call = CALL | {"num_inference_steps": args.steps, "guidance_scale": args.guidance}
    backends = Backends(clip="emoji_clip", clip_path=ZOO / "emoji_clip")
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        generate_images(pipe, pipe.transformer, prompts, images, call, seed=0, batch_size=32)
        found = retrieval_accuracy(images, prompts, backends=backends)
        sheet(images, prompts, args.pipeline / "samples.png" if not args.measure_only else args.work / "samples.png")
    low, high = found.interval
    sys.stdout.write(f"{found.name} {found.value:.3f} [{low:.3f}, {high:.3f}] n={found.n}\n")
    if args.measure_only:
        return
    pictures, listed = data.load_archive()
    real = vae.to_tensor(pictures)
    values = {
        "accuracy": f"{100 * found.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]",
        "count": str(found.n),
        "psnr": f"{vae.psnr(pipe.vae, real):.1f}",
        "pictures": str(len(listed)),
        "parameters": f"{sum(p.numel() for p in pipe.transformer.parameters()) / 1e6:.1f}",
        "losses": losses(args.work),
        "context": str(text.CONTEXT),
        "steps": str(args.steps),
        "guidance": str(args.guidance),
    }
    template = Template((ZOO / "card.md").read_text())
    (args.pipeline / "README.md").write_text(template.substitute(values))


if __name__ == "__main__":
    main()
