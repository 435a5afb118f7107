"""Where ComfyUI looks for the tensors of diffusers' models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from segquant.errors import QuantizationError


@dataclass(frozen=True)
class Place:
    """A module's name there.

    Attributes:
        part: its rows' position in a layer that is fused there; None alone.
        swapped: its first half of rows comes second there (scale and shift of the last norms).
    """

    module: str
    part: int | None = None
    swapped: bool = False


_ENDS = {
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
_SD3 = {
    **_ENDS,
    "context_embedder": "context_embedder",
    "pos_embed": "",  # its buffer is called pos_embed, too
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
}
_SD3_BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
    "attn.to_": "x_block.attn.qkv",
    "attn2.to_": "x_block.attn2.qkv",
    "attn.add_": "context_block.attn.qkv",
}
_FLUX = {
    **_ENDS,
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
}
_FLUX_BLOCK = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
    "attn.to_": "img_attn.qkv",
    "attn.add_": "txt_attn.qkv",
}
_FLUX_SINGLE = {
    "norm.linear": "modulation.lin",
    "proj_out": "linear2",
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
    "attn.to_": "linear1",
    "proj_mlp": "linear1",
}
_BLOCK = re.compile(r"(single_transformer_blocks|transformer_blocks)\.(\d+)\.(.+)")
_FUSED = re.compile(r"(.*\.)(to|add)_([qkv])(_proj)?$")

Tables = Mapping[str, tuple[str, Mapping[str, str]]]
"""By list of blocks: its name there, and the block's modules; "" for what is outside."""
FAMILIES: dict[str, Tables] = {
    "SD3Transformer2DModel": {"": ("", _SD3), "transformer_blocks": ("joint_blocks", _SD3_BLOCK)},
    "FluxTransformer2DModel": {
        "": ("", _FLUX),
        "transformer_blocks": ("double_blocks", _FLUX_BLOCK),
        "single_transformer_blocks": ("single_blocks", _FLUX_SINGLE),
    },
    "QwenImageTransformer2DModel": {},  # ComfyUI took diffusers' names over
}
_SCALES = ("query_norm", "key_norm")
"""Norms whose weight is called scale there."""


def places(model: nn.Module) -> dict[str, Place]:
    """Every module with tensors of its own, by its name in diffusers.

    Raises:
        QuantizationError: ComfyUI's names of this class, or of one of its modules, are not known here.
    """
    kind = type(model).__name__
    if kind not in FAMILIES:
        raise QuantizationError(
            f"ComfyUI's names for a {kind} are not known here, only for {', '.join(FAMILIES)}; names='diffusers' "
            "writes its own, for a loader that maps them"
        )
    tables = FAMILIES[kind]
    found = {}
    for name, module in model.named_modules():
        if any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False))):
            found[name] = _place(name, tables, kind) if tables else Place(name)
    swapped = {
        f"{name}.linear" for name, module in model.named_modules() if type(module).__name__ == "AdaLayerNormContinuous"
    }
    return {
        name: Place(place.module, place.part, True) if tables and name in swapped else place
        for name, place in found.items()
    }


def _place(name: str, tables: Tables, kind: str) -> Place:
    match = _BLOCK.fullmatch(name)
    blocks, index, inner = match.groups() if match else ("", "", name)
    if blocks in tables:
        target, table = tables[blocks]
        prefix = f"{target}.{index}." if target else ""
        fused = _FUSED.fullmatch(inner)
        if fused and f"{fused[1]}{fused[2]}_" in table:
            return Place(prefix + table[f"{fused[1]}{fused[2]}_"], "qkv".index(fused[3]))
        if inner == "proj_mlp" and inner in table:
            return Place(prefix + table[inner], len("qkv"))
        if inner in table:
            return Place(prefix + table[inner])
    raise QuantizationError(
        f"ComfyUI's name for {name} of a {kind} is not known here; names='diffusers' writes its own, for a loader that "
        "maps them"
    )


def tensor_name(place: Place, key: str) -> str:
    """A tensor's name there."""
    renamed = "scale" if key == "weight" and place.module.endswith(_SCALES) else key
    return f"{place.module}.{renamed}" if place.module else renamed
