"""What the plan of each shipped architecture must say, derived by hand from its class as functions of its depth.

Every formula is read off the class's code, never off a plan. D is the width; a weight count is that of all linears
without biases. "Heads" are inputs made of merged attention heads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Counts:
    """Linears, their weights, convolutions, and how often each cut and each feeding activation of a linear occurs.

    `pieces`: activations that feed a piece of an input. `kernels`: input cuts of convolutions.
    """

    linears: int
    weights: int
    convolutions: int = 0
    outputs: Counter = field(default_factory=Counter)
    inputs: Counter = field(default_factory=Counter)
    activations: Counter = field(default_factory=Counter)
    pieces: Counter = field(default_factory=Counter)
    kernels: Counter = field(default_factory=Counter)


def sd3(layers: int, heads: int, dual: int, **_: Any) -> Counts:
    """Outside 7: timestep 2, pooled text 2, context_embedder, norm_out (chunk 2), proj_out (2·2·16 outputs).

    A block has 14: norm1 and norm1_context (chunk 6), q k v, added q k v, to_out, to_add_out, two feed-forwards of 2.
    The last has no context output: norm1_context chunks 2, no to_add_out, no ff_context. A dual one chunks norm1 by 9
    and has four more (attn2), with merged heads. SiLU: 2 embedders, 2 norms a block, norm_out. GELU: every ff.
    """
    d = 64 * heads
    outputs = Counter({(d,) * 9: dual}) + Counter({(d,) * 6: layers - dual + layers - 1}) + Counter({(d,) * 2: 2})
    outside = (256 * d + d * d) + (2048 * d + d * d) + 4096 * d + 2 * d * d + 64 * d
    blocks = 36 * d * d * (layers - 1) + 23 * d * d + 7 * d * d * dual
    return Counts(
        7 + 14 * (layers - 1) + 11 + 4 * dual,
        outside + blocks,
        1,
        outputs,
        Counter({(64,) * heads: 2 * layers - 1 + dual}),
        Counter(silu=2 + 2 * layers + 1, gelu=2 * layers - 1),
    )


def sd3_controlnet(layers: int, **_: Any) -> Counts:
    """Outside 5 (no output layers), every block whole (14), one linear after each; patches of picture and condition."""
    d = 1536
    outside = (256 * d + d * d) + (2048 * d + d * d) + 4096 * d
    return Counts(
        5 + 15 * layers,
        outside + 37 * d * d * layers,
        2,
        Counter({(d,) * 6: 2 * layers}),
        Counter({(64,) * 24: 2 * layers}),
        Counter(silu=2 + 2 * layers, gelu=2 * layers),
    )


def _flux_blocks(double: int, single: int) -> Counts:
    """Double block 14: as SD3's whole block. Single block 6: norm (chunk 3), q k v, proj_mlp, proj_out, whose input is
    the concat of attention (D) and GELU (4 D)."""
    d = 3072
    return Counts(
        14 * double + 6 * single,
        36 * d * d * double + 15 * d * d * single,
        0,
        Counter({(d,) * 6: 2 * double}) + Counter({(d,) * 3: single}),
        Counter({(128,) * 24: 2 * double}) + Counter({(d, 4 * d): single}),
        Counter({"silu": 2 * double + single}) + Counter({"gelu": 2 * double}),
        Counter({"gelu": single}),
    )


def flux(double: int, single: int, guidance: bool = True) -> Counts:
    """Outside 10 with guidance: timestep 2, guidance 2, text 2, x_embedder, context_embedder, norm_out (chunk 2) and
    proj_out. SiLU: the embedders and norm_out too."""
    d, found = 3072, _flux_blocks(double, single)
    found.linears += 8 + 2 * guidance
    found.weights += (1 + guidance) * (256 * d + d * d) + 768 * d + d * d + 64 * d + 4096 * d + 2 * d * d + 64 * d
    found.outputs += Counter({(d, d): 1})
    found.activations += Counter(silu=3 + guidance)
    return found


def flux_controlnet(double: int, single: int) -> Counts:
    """Outside 9: 3 embedders of 2, context_embedder, x_embedder, controlnet_x_embedder; one linear after each block."""
    d, found = 3072, _flux_blocks(double, single)
    found.linears += 9 + double + single
    found.weights += 2 * (256 * d + d * d) + 768 * d + d * d + 4096 * d + 2 * 64 * d + d * d * (double + single)
    found.activations += Counter(silu=3)
    return found


def sdxl(depths: tuple[int, int]) -> Counts:
    """Widths 320, 640, 1280 with 2 (up 3) resnets; the lower two have transformers of `depths` blocks, the middle one.

    Transformers: 2 + 3 of width 640, 2 + 1 + 3 of 1280. Each has proj_in and proj_out, each block 10 linears: two
    attentions of 4 (the second's k and v on text of 2048), GEGLU D -> 2 · 4 D (a cut in halves), 4 D -> D.
    Resnets: 6 down, 2 middle, 9 up, each with a time projection fed by SiLU, two 3×3 convolutions; a 1×1 shortcut
    where the width changes (2 down) and on every skip concat (9 up). Convolutions: in, out, 2 down, 2 up beside.
    Embeddings 4: the added one takes the concat of text (1280) and 6 · 256 sines of sizes. A skip concat feeds the
    first convolution of its resnet and the shortcut.
    """
    small, large = 5 * depths[0], 6 * depths[1]
    transformers = sum(
        2 * count * d * d + blocks * (18 * d * d + 2 * 2048 * d)
        for count, blocks, d in ((5, small, 640), (6, large, 1280))
    )
    times = 1280 * (5 * 320 + 5 * 640 + 7 * 1280)
    return Counts(
        4 + 17 + 2 * 11 + 10 * (small + large),
        (320 * 1280 + 1280**2) + (2816 * 1280 + 1280**2) + times + transformers,
        2 + 17 * 2 + 2 + 9 + 2 + 2,
        Counter({(2560,) * 2: small, (5120,) * 2: large}),
        Counter({(64,) * 10: 2 * small, (64,) * 20: 2 * large, (1280, 1536): 1}),
        Counter(silu=2 + 17, geglu=small + large),
        kernels=Counter({(1280, 1280): 4, (1280, 640): 4, (640, 640): 2, (640, 320): 4, (320, 320): 4}),
    )


def pixart(layers: int) -> Counts:
    """Outside 6: timestep 2 and the shared adaln linear (6 chunks in every block), caption 2, proj_out (2·2·8). A block
    10: two attentions of 4 and a feed-forward of 2. SiLU: timestep, adaln. GELU: each ff, and the caption's."""
    d = 16 * 72
    outside = 256 * d + 7 * d * d + 4096 * d + d * d + 32 * d
    return Counts(
        6 + 10 * layers,
        outside + 16 * d * d * layers,
        1,
        Counter({(d,) * 6: 1}),
        Counter({(72,) * 16: 2 * layers}),
        Counter(silu=2, gelu=layers + 1),
    )


def sana(layers: int) -> Counts:
    """Outside 6 as PixArt's; a block 8: linear attention of 70 heads of 32, cross attention of 20 heads of 112. Its
    feed-forward is 3 convolutions (1×1, depthwise, 1×1), the embedding of patches one."""
    d = 70 * 32
    outside = 256 * d + 7 * d * d + 2304 * d + d * d + 32 * d
    return Counts(
        6 + 8 * layers,
        outside + 8 * d * d * layers,
        1 + 3 * layers,
        Counter({(d,) * 6: 1}),
        Counter({(32,) * 70: layers, (112,) * 20: layers}),
        Counter(silu=2, gelu=1),
    )


def dit(layers: int) -> Counts:
    """A block 9: its own timestep embedder 2, norm1 (chunk 6), attention 4, feed-forward 2. Outside 2: proj_out_1
    (chunk 2) on the embedding of block 0, which is called once more, and proj_out_2 (2·2·8)."""
    d = 16 * 72
    return Counts(
        9 * layers + 2,
        layers * (256 * d + 19 * d * d) + 2 * d * d + 32 * d,
        1,
        Counter({(d,) * 6: layers, (d,) * 2: 1}),
        Counter({(72,) * 16: layers}),
        Counter(silu=2 * layers + 1, gelu=layers),
    )


def qwen_image(layers: int) -> Counts:
    """A block 14: img_mod and txt_mod (halves, each cut in three), attention 8, two feed-forwards of 2. Outside 6:
    timestep 2, img_in, txt_in, norm_out (chunk 2), proj_out."""
    d = 3072
    outside = (256 * d + d * d) + 64 * d + 3584 * d + 2 * d * d + 64 * d
    return Counts(
        6 + 14 * layers,
        outside + 36 * d * d * layers,
        0,
        Counter({(d,) * 6: 2 * layers, (d,) * 2: 1}),
        Counter({(128,) * 24: 2 * layers}),
        Counter(silu=2 * layers + 2, gelu=2 * layers),
    )


def z_image(layers: int) -> Counts:
    """`layers` blocks, 2 refining noise and 2 refining text. A block 7: q k v, out, SwiGLU of width 8/3 · D (rounded
    down to 10240); but for the text's, one more for modulation (chunk 4) from 256 features. Outside 6: timestep 2
    (1024 wide inside), text, patches (2·2·16), and the last layer with its modulation (no chunk)."""
    d, hidden = 3840, 10240
    modulated, blocks = layers + 2, layers + 4
    outside = 2 * 256 * 1024 + 2560 * d + 64 * d + 64 * d + 256 * d
    return Counts(
        6 + 7 * blocks + modulated,
        outside + blocks * (4 * d * d + 3 * d * hidden) + modulated * 256 * 4 * d,
        0,
        Counter({(d,) * 4: modulated}),
        Counter({(128,) * 30: blocks}),
        Counter(silu=2, swiglu=blocks),
    )


def wan(layers: int) -> Counts:
    """Outside 6: timestep 2 and time_proj (6 chunks in every block), text 2, proj_out (1·2·2·16). A block 10: two
    attentions of 4, a feed-forward of 2. SiLU: timestep, time_proj. GELU: each ffn, and the text's."""
    d, hidden = 5120, 13824
    outside = 256 * d + d * d + 6 * d * d + 4096 * d + d * d + 64 * d
    return Counts(
        6 + 10 * layers,
        outside + layers * (8 * d * d + 2 * d * hidden),
        0,
        Counter({(d,) * 6: 1}),
        Counter({(128,) * 40: 2 * layers}),
        Counter(silu=2, gelu=layers + 1),
    )


@dataclass(frozen=True)
class Case:
    """An architecture: its counts at full size, and a shallow one with its counts."""

    full: Counts
    changes: dict[str, Any]
    shallow: Counts


def _depth(counts: Callable[..., Counts], full: int, shallow: int = 2, key: str = "num_layers", **rest: Any) -> Case:
    return Case(counts(full, **rest), {key: shallow}, counts(shallow, **rest))


_TWO = {"num_layers": 2, "num_single_layers": 3}
_SHALLOW_SDXL = {"transformer_layers_per_block": (1, 1, 2)}

CASES: dict[str, Case] = {
    "sd3_medium": _depth(sd3, 24, heads=24, dual=0),
    "sd35_medium": Case(sd3(24, 24, 13), {"num_layers": 3, "dual_attention_layers": (0, 1)}, sd3(3, 24, 2)),
    "sd35_large": _depth(sd3, 38, heads=38, dual=0),
    "sd3_controlnet": _depth(sd3_controlnet, 6),
    "flux1_dev": Case(flux(19, 38), _TWO, flux(2, 3)),
    "flux1_schnell": Case(flux(19, 38, guidance=False), _TWO, flux(2, 3, guidance=False)),
    "flux_controlnet": Case(flux_controlnet(5, 0), {"num_layers": 2}, flux_controlnet(2, 0)),
    "flux_controlnet_union": Case(flux_controlnet(5, 10), _TWO, flux_controlnet(2, 3)),
    "sdxl": Case(sdxl((2, 10)), _SHALLOW_SDXL, sdxl((1, 2))),
    "sdxl_turbo": Case(sdxl((2, 10)), _SHALLOW_SDXL, sdxl((1, 2))),
    "pixart_sigma": _depth(pixart, 28),
    "sana": _depth(sana, 20),
    "dit_xl_2": _depth(dit, 28),
    "qwen_image": _depth(qwen_image, 60),
    "z_image": _depth(z_image, 30, key="n_layers"),
    "wan22": _depth(wan, 40),
}
