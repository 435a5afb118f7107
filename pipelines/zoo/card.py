"""Run as a module: measure an embedded pipeline and write its model card and sample sheet."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from segquant_bench.eval import Backends, EvalResult, retrieval_accuracy
from segquant_bench.pipelines.config.resolvers import register
from segquant_bench.pipelines.config.schema import RunConfig, validate
from segquant_bench.pipelines.data.canny import control_picture
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.loading.files import resolve_directory
from segquant_bench.pipelines.loading.models import denoiser_name, load_pipeline
from segquant_bench.pipelines.runtime.paths import CONF, FAMILIES, ZOO
from segquant_bench.pipelines.sampling.generate import generate_images
from segquant_bench.pipelines.zoo import data, text, vae

SHEET = (8, 12)
PARTS = ("vae", "text", "scorer", "denoiser", "decoder", "t5", "velocity", "guidance", "unet", "controlnet")


def evaluation_prompts(count: int, seed: int = 0) -> list[str]:
    """A seeded draw."""
    captions = [p.caption for p in data.load_archive()[1] if p.split == "evaluation"]
    order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(seed)).tolist()
    return [captions[i] for i in order[:count]]


def sheet(folder: Path, prompts: list[str], path: Path) -> None:
    """The first pictures with captions, none picked by hand."""
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


def losses(work: Path, card: Path) -> str:
    """A line per stage: last loss, steps and minutes; stages without a log in `work` keep the line of `card`."""
    found = []
    for name in PARTS:
        record = work / f"{name}.jsonl"
        if record.exists():
            last = json.loads(record.read_text().splitlines()[-1])
            found.append(f"| {name} | {last['step']} | {last['seconds'] / 60:.0f} | {last['loss']:.4f} |")
        elif card.exists():
            found += [line for line in card.read_text().splitlines() if line.startswith(f"| {name} | ")][:1]
    return "\n".join(found)


def load_run(family: str) -> RunConfig:
    """The run of `segquant model=emoji_…`."""
    register()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return validate(compose("config", overrides=[f"model={FAMILIES[family]}", "dataset=emoji"]))


def edges_of(prompts: list[str], size: int = data.SIZE) -> Callable[[range], dict[str, Any]]:
    """Control pictures of the prompts."""
    arrays, listed = data.load_archive()
    by_caption = {picture.caption: array for picture, array in zip(listed, arrays, strict=True)}

    def inputs(indices: range) -> dict[str, Any]:
        pictures = [Image.fromarray(by_caption[prompts[index]]).resize((size, size)) for index in indices]
        return {"control_image": [control_picture(picture) for picture in pictures]}

    return inputs


def edge_agreement(folder: Path, prompts: list[str]) -> float:
    """F1 of generated edges against control pictures, one pixel off forgiven."""
    scores = []
    for index, control in enumerate(edges_of(prompts)(range(len(prompts)))["control_image"]):
        wanted = np.asarray(control)[..., 0] > 0
        found = np.asarray(control_picture(Image.open(folder / f"{index:05d}.png")))[..., 0] > 0
        near_wanted, near_found = (ndimage.binary_dilation(edges, np.ones((3, 3))) for edges in (wanted, found))
        hits = [(found & near_wanted).sum() / max(1, found.sum()), (wanted & near_found).sum() / max(1, wanted.sum())]
        scores.append(0.0 if not any(hits) else 2 * hits[0] * hits[1] / (hits[0] + hits[1]))
    return float(np.mean(scores))


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=FAMILIES, default="sd3")
    parser.add_argument("--work", type=Path, help="training logs; outputs/zoo/NAME unless given")
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--steps", type=int, help="sampling steps; those of conf/model unless given")
    parser.add_argument("--guidance", type=float, help="likewise")
    parser.add_argument("--measure-only", action="store_true", help="print, and write nothing into the pipeline")
    args = parser.parse_args(argv)
    args.work = args.work or Path("outputs/zoo") / FAMILIES[args.family]
    return args


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    config = load_run(args.family).model
    pipe = load_pipeline(config, resolve_directory(config))
    asked = {"num_inference_steps": args.steps, "guidance_scale": args.guidance}
    call = config.call.arguments() | {key: value for key, value in asked.items() if value is not None}
    prompts, target = evaluation_prompts(args.count), ZOO / FAMILIES[args.family]
    inputs = edges_of(prompts) if config.control else None
    backends = Backends(clip="emoji_clip", clip_path=ZOO / "emoji_clip")
    denoiser = pipe.components[denoiser_name(pipe, config.denoiser)]
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        generate_images(pipe, denoiser, prompts, images, call, seed=0, batch_size=32, inputs=inputs)
        found = retrieval_accuracy(images, prompts, backends=backends)
        agreement = edge_agreement(images, prompts) if inputs else None
        sheet(images, prompts, (args.work if args.measure_only else target) / "samples.png")
    low, high = _interval(found)
    sys.stdout.write(f"{found.name} {found.value:.3f} [{low:.3f}, {high:.3f}] n={found.n}")
    sys.stdout.write("\n" if agreement is None else f", edges F1 {agreement:.3f}\n")
    if not args.measure_only:
        write_card(args, pipe, denoiser, call, found, agreement)


def _interval(found: EvalResult) -> tuple[float, float]:
    if found.interval is None:
        raise PipelineError("an accuracy without an interval: measure on more than one picture (--count)")
    return found.interval


def write_card(
    args: argparse.Namespace, pipe: Any, denoiser: Any, call: dict[str, Any], found: EvalResult, agreement: float | None
) -> None:
    """Fill the family's template."""
    pictures, listed = data.load_archive()
    unseen, card_file = data.held_out(listed), ZOO / FAMILIES[args.family] / "README.md"
    low, high = _interval(found)
    trained = pipe.controlnet if agreement is not None else denoiser
    values = {
        "accuracy": f"{100 * found.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]",
        "count": str(found.n),
        "psnr": f"{vae.psnr(pipe.vae, vae.to_tensor(pictures)):.1f}",
        "psnr_held_out": f"{vae.psnr(pipe.vae, vae.to_tensor(pictures[unseen])):.1f}",
        "unseen": str(unseen.sum()),
        "pictures": str(len(listed)),
        "parameters": f"{sum(p.numel() for p in trained.parameters()) / 1e6:.1f}",
        "losses": losses(args.work, card_file),
        "context": str(text.CONTEXT),
        "steps": str(call["num_inference_steps"]),
        "guidance": str(call["guidance_scale"]),
        "edges": "" if agreement is None else f"{agreement:.2f}",
    }
    template = Template((ZOO / f"card_{args.family}.md").read_text() + (ZOO / "card_data.md").read_text())
    card = template.substitute(values).replace(f"({FAMILIES[args.family]}/", "(")  # it stands in that folder
    card_file.write_text(card)


if __name__ == "__main__":
    main()
