"""Run as a module: rebuild the embedded pipeline and the CLIP scorer from the two emoji packages.

Stages: pictures → autoencoder → text encoders → scorer → denoiser → assembly. Every stage is resumable: started
again, the command goes on at its last checkpoint (in `outputs/zoo/`). `--only` runs some of them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from segquant_bench.pipelines.runtime.paths import FAMILIES, ZOO
from segquant_bench.pipelines.zoo import data, decoder, denoiser, text, vae
from segquant_bench.pipelines.zoo.family import Setting
from segquant_bench.pipelines.zoo.loop import Recipe

log = logging.getLogger(__name__)
STAGES = ("pictures", "vae", "text", "scorer", "denoiser", "decoder", "assemble")
BOUNDED = ("decoder", "denoiser")
RECIPES = {
    "vae": Recipe(steps=2600, batch=16, lr=2e-3, average=0.995),
    "decoder": Recipe(steps=12000, batch=16, lr=2e-3, average=0.995, muon=True),
    "text": Recipe(steps=350, batch=256, lr=1e-3, weight_decay=0.01),
    "scorer": Recipe(steps=900, batch=256, lr=1e-3, weight_decay=0.05),
    "denoiser": Recipe(steps=6000, batch=256, lr=2e-3, average=0.998, muon=True),
}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, default="sd3")
    parser.add_argument("--only", nargs="+", choices=STAGES, help="stages of sd3; all unless given")
    parser.add_argument("--work", type=Path, help="checkpoints and logs; outputs/zoo/NAME unless given")
    parser.add_argument("--output", type=Path, help="the pipeline's folder; pipelines/zoo/NAME unless given")
    parser.add_argument("--scorer", type=Path, default=ZOO / "emoji_clip", help="the scorer's folder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--minutes", type=float, help="bound on the training time of the denoiser (and of the decoder's refinement)"
    )
    parser.add_argument("--steps", type=int, help="bound on each stage's steps (to try the recipe out)")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--continue-from", type=Path, help="start the denoiser at these weights (a pipeline folder)")
    args = parser.parse_args(argv)
    if args.family != "sd3" and (args.only or args.continue_from):
        parser.error("--only and --continue-from are for --family sd3; the other families train as a whole")
    args.only = args.only or list(STAGES)
    args.work = args.work or Path("outputs/zoo") / FAMILIES[args.family]
    args.output = args.output or ZOO / FAMILIES[args.family]
    return args


def recipe(name: str, args: argparse.Namespace) -> Recipe:
    chosen = RECIPES[name].__dict__ | ({"minutes": args.minutes} if name in BOUNDED else {})
    if args.steps is not None:
        chosen["steps"] = min(chosen["steps"], args.steps)
    return Recipe(**chosen)


def encoder_folder(args: argparse.Namespace) -> Path:
    """The autoencoder that this work trained, or the pipeline's where it trained none (`--only decoder`)."""
    trained: Path = args.work / "vae"
    folder = trained if trained.exists() else args.output / "vae"
    log.info("the encoder is that of %s", folder)
    return folder


def embed(pipe: StableDiffusion3Pipeline, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings by the pipeline's `encode_prompt`: [n, 16, 256] and [n, 256]."""
    found = []
    with torch.no_grad():
        for start in range(0, len(captions), 256):
            part = captions[start : start + 256]
            out = pipe.encode_prompt(part, None, None, do_classifier_free_guidance=False, max_sequence_length=0)
            found.append((out[0].float().cpu(), out[2].float().cpu()))
    return torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])


def place_decoder(work: Path, output: Path) -> None:
    """Write the new autoencoder into a pipeline's folder, bf16; the other families' links lead to it."""
    AutoencoderKL.from_pretrained(work / "vae_refined").to(torch.bfloat16).save_pretrained(output / "vae")


def assemble(work: Path, output: Path) -> StableDiffusion3Pipeline:
    """Write the diffusers folder, bf16, files under 15 MB."""
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    pipe = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel.from_pretrained(work / "transformer")
        if (work / "transformer").exists()
        else denoiser.build(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=AutoencoderKL.from_pretrained(work / ("vae_refined" if (work / "vae_refined").exists() else "vae")),
        text_encoder=CLIPTextModelWithProjection.from_pretrained(work / "text_encoder"),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(work / "text_encoder_2"),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    if output != work:
        pipe.to(torch.bfloat16).save_pretrained(output, safe_serialization=True, max_shard_size="14MB")
    return pipe


def run_text(images: torch.Tensor, captions: list[str], args: argparse.Namespace) -> None:
    tokenizer = text.build_tokenizer([*captions, ""], args.work / "tokenizer")
    towers = text.train_encoders(images, captions, tokenizer, recipe("text", args), args.work, args.device)
    for name, tower in zip(("text_encoder", "text_encoder_2"), towers, strict=True):
        tower.cpu().save_pretrained(args.work / name)


def run_denoiser(images: torch.Tensor, captions: list[str], args: argparse.Namespace) -> None:
    pipe = assemble(args.work, args.work)
    latents = vae.encode(pipe.vae, images)
    latents = (latents - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
    words, pooled = embed(pipe, captions)
    no_words, no_pooled = embed(pipe, [""])
    empty = no_words[0], no_pooled[0]
    initial = None
    if args.continue_from:
        initial = SD3Transformer2DModel.from_pretrained(args.continue_from, subfolder="transformer").state_dict()
    model = denoiser.train(latents, words, pooled, empty, recipe("denoiser", args), args.work, args.device, initial)
    model.cpu().save_pretrained(args.work / "transformer")


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args = arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    if args.family != "sd3":
        setting = Setting(args.work, args.output, args.device, args.minutes, args.steps)
        importlib.import_module(f"segquant_bench.pipelines.zoo.{args.family}").train(setting)
        return
    if "pictures" in args.only and not data.ARCHIVE.exists():
        data.build_archive()
    pictures, listed = data.load_archive()
    images, captions = vae.to_tensor(pictures), [p.caption for p in listed]

    def run_vae() -> None:
        model = vae.train(pictures, recipe("vae", args), args.work, args.device)
        log.info("autoencoder: PSNR %.2f dB", vae.psnr(model, images))
        model.cpu().save_pretrained(args.work / "vae")

    def run_decoder() -> None:
        source = AutoencoderKL.from_pretrained(encoder_folder(args))
        unseen = data.held_out(listed)
        more = vae.to_tensor(data.more_pictures(args.work / "more.npz"))
        model = decoder.train(source, images, unseen, more, recipe("decoder", args), args.work, args.device)
        held_out = vae.psnr(model, images[torch.from_numpy(unseen)])
        log.info("decoder: PSNR %.2f dB, held-out pictures %.2f dB", vae.psnr(model, images), held_out)
        model.cpu().save_pretrained(args.work / "vae_refined")

    def run_scorer() -> None:
        judge = text.train_scorer(images, captions, recipe("scorer", args), args.work, args.scorer, args.device).cpu()
        ids = text.tokens(CLIPTokenizer.from_pretrained(args.scorer), captions)
        log.info("scorer: %.4f of real pictures closest to their caption", text.agreement(judge, images, ids))

    steps: dict[str, Callable[[], object]] = {
        "vae": run_vae,
        "text": lambda: run_text(images, captions, args),
        "scorer": run_scorer,
        "denoiser": lambda: run_denoiser(images, captions, args),
        "decoder": run_decoder,
        "assemble": lambda: (place_decoder if set(args.only) == {"decoder", "assemble"} else assemble)(
            args.work, args.output
        ),
    }
    for name, step in steps.items():
        if name in args.only:
            log.info("stage %s", name)
            step()
    (args.work / "arguments.json").write_text(json.dumps(vars(args), default=str, indent=2) + "\n")


if __name__ == "__main__":
    main()
